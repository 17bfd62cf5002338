"""Balanced accuracy: the mean over classes of the share of its samples that are recognised.

Classes without a sample in the test set are left out.

Source: none; a textbook measure, see Brodersen et al., "The balanced accuracy and its posterior distribution", 2010.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["balanced_accuracy"]


def balanced_accuracy(logits: Float[Tensor, "N C"], labels: Int64[Tensor, "N"]) -> float:
    """Over a whole test set, in [0, 1]."""
    classes = logits.shape[1]
    hits = torch.bincount(labels[logits.argmax(dim=1) == labels], minlength=classes).double()
    samples = torch.bincount(labels, minlength=classes)
    return float((hits / samples)[samples > 0].mean())
