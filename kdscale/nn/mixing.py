"""Losses on the labels of mixed samples (mixup, cutmix)."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from kdscale.api import Batch

__all__ = ["by_share"]


def by_share(batch: Batch, against: Callable[[Tensor], Tensor]) -> Float[Tensor, "B"]:
    """What `against` gives for the labels (B,); of a mixed sample for both its labels, each by its share."""
    values = against(batch.labels)
    if batch.labels_b is None or batch.lam is None:
        return values
    return batch.lam * values + (1 - batch.lam) * against(batch.labels_b)
