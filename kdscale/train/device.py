"""The device of a rank, and how repeatable its arithmetic is."""

from __future__ import annotations

import os

import torch

from kdscale import ranks
from kdscale.config.schema import StageSpec

__all__ = ["device_of_rank", "make_deterministic"]


def device_of_rank() -> torch.device:
    """This rank's GPU where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", ranks.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def make_deterministic(spec: StageSpec, device: torch.device) -> None:
    """Where `train.deterministic` asks for it, make a GPU repeat itself bit for bit; a CPU does so anyway."""
    if spec.train.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
