"""The device of a rank, and how repeatable its arithmetic is."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

from kdscale import ranks
from kdscale.config.schema import StageSpec

__all__ = ["device_of_rank", "make_deterministic", "seed_generators", "settle_heap"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


def settle_heap() -> None:
    """Give back what building a stage has freed, and keep from here on what a step frees for the next one.

    glibc returns the top of its heap at every backward pass and takes it again page by page: on a CPU that is ten
    thousand page faults a step, and a tenth of its time.
    """
    with suppress(OSError, AttributeError):  # other C libraries have neither
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
