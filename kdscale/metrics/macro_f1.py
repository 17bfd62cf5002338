"""Macro F1: the mean over classes of the harmonic mean of precision and recall.

A class that neither the labels nor the answers hold is left out; one that is never answered rightly counts as 0, as in
scikit-learn's `f1_score(average="macro")`.

Source: none; a textbook measure, see van Rijsbergen, "Information Retrieval", 1979.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["macro_f1"]


def macro_f1(logits: Float[Tensor, "N C"], labels: Int64[Tensor, "N"]) -> float:
    """Over a whole test set, in [0, 1]."""
    classes = logits.shape[1]
    answers = logits.argmax(dim=1)
    hits = torch.bincount(labels[answers == labels], minlength=classes).double()
    named = torch.bincount(answers, minlength=classes) + torch.bincount(labels, minlength=classes)
    return float((2 * hits / named)[named > 0].mean())
