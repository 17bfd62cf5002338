"""Precision of networks, and of what is summed into a loss."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["AUTOCAST", "at_least_fp32", "autocast_as", "autocast_of"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Widen half-precision tensors to float32; float32 and float64 stay as they are.

    A softmax over many classes loses its tail in bf16, and squares overflow in fp16: so every loss
    widens what a network under autocast hands to it, before its first operation.
    """
    if tensor.dtype in (torch.float32, torch.float64):  # each call less counts for a loss of a few small operations
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    """The precision that a config names, as a context for networks; fp32 leaves everything as it is."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def autocast_as(answer: Tensor) -> torch.autocast:
    """The precision in which a stage runs its networks, as one of them answered, for the networks that a loss has.

    A regressor over maps costs what a layer of the student does, so it runs as one; what it answers is widened before
    it is compared. fp16 is not entered: its range is the student's business, which is scaled for it.
    """
    return torch.autocast(answer.device.type, dtype=torch.bfloat16, enabled=answer.dtype == torch.bfloat16)
