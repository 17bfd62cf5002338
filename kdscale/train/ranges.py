"""What is to be said of tensors in a line: their range, and which samples of them are not finite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kdscale.api import Losses, Outputs

__all__ = ["Range", "all_finite", "bad_samples", "condition", "floats_in"]


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a tensor, and how many are not finite."""

    shape: tuple[int, ...]
    low: float
    high: float
    bad: int

    @classmethod
    def of(cls, tensor: Tensor) -> Range:
        """Of a tensor's finite values."""
        values = tensor.detach().float()
        finite = values[torch.isfinite(values)]
        low, high = (finite.min().item(), finite.max().item()) if len(finite) else (float("nan"), float("nan"))
        return cls(tuple(tensor.shape), low, high, values.numel() - len(finite))

    def __str__(self) -> str:
        bad = f", {self.bad:,} not finite" if self.bad else ""
        return f"{'x'.join(map(str, self.shape)) or 'one number'} in [{self.low:.4g}, {self.high:.4g}]{bad}"


def floats_in(value: Any) -> list[Tensor]:
    """All tensors of real numbers in a value, of whatever kind."""
    if isinstance(value, Outputs):
        value = (value.logits, value.features)
    elif isinstance(value, Losses):
        value = (value.total, value.terms)
    leaves = [leaf for one in tree_leaves(value) for leaf in (floats_in(one) if _is_ours(one) else [one])]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _is_ours(value: Any) -> bool:
    return isinstance(value, Outputs | Losses)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value of some tensors is."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def bad_samples(tensor: Tensor, batch: int) -> list[int]:
    """Which samples of a batch are not finite, where the tensor has a line for each."""
    if not tensor.dim() or len(tensor) != batch:
        return []
    fine = torch.isfinite(tensor.reshape(batch, -1)).all(1)
    return torch.nonzero(~fine).flatten().tolist()


def condition(inputs: Any, batch: int) -> str:
    """What is odd about a module's inputs, or else their ranges."""
    tensors = floats_in(inputs)
    for tensor in tensors:
        if bad := bad_samples(tensor, batch):
            return f"its input is not finite already, in {len(bad)} of {batch} samples"
        if tensor.dim() > 1 and len(tensor) == batch:
            empty = torch.nonzero(tensor.reshape(batch, -1).abs().amax(1) == 0).flatten().tolist()
            if empty and len(empty) < batch:
                return f"||x|| = 0 in sample {empty[0]} of its input"
    return f"its input: {', '.join(str(Range.of(tensor)) for tensor in tensors[:2])}" if tensors else ""
