"""The device of a rank, and how repeatable its arithmetic is."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

from kdscale import ranks
from kdscale.config.schema import StageSpec

__all__ = ["device_of_rank", "give_back_freed_memory", "make_deterministic", "seed_generators"]


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


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a step may draw from: the host's, and its own GPU's.

    `torch.manual_seed` asks every kind of accelerator, and formats a stack for each that is not there: 0.3 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def give_back_freed_memory() -> None:
    """Return what building a stage has freed to the system: in pieces, it serves training no more than a new page."""
    with suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
