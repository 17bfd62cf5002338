"""Neuron selectivity transfer: the student's channels must be active at the same places as the teacher's, as a set.

Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219, eq. 5,
with the polynomial kernel (d = 2, c = 0) that it finds best; RepDistiller's weight for it is 50.
Deviation: where sizes differ the larger map is average-pooled, as RepDistiller does.
Reduction: mean over pairs of channels and over samples, sum over layers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.pairwise import unit_rows
from kdscale.nn.sides import map_sides, paired_shapes, pooled_alike, total

__all__ = ["NeuronSelectivity"]


class NeuronSelectivity(Loss):
    """Match the distribution of the channels' selectivity maps, by their maximum mean discrepancy."""

    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Loss.Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("nst", shapes.student, shapes.teacher)
        if all(min(s[1], t[1]) * min(s[2], t[2]) == 1 for s, t in pairs):
            raise ShapeError("nst: a map of one position selects no place; tap stages, not pooled features")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's squared discrepancy, summed over layers. Raises: ShapeError."""
        with torch.autocast(student.logits.device.type, enabled=False):
            layers = []
            for ours, theirs in map_sides("nst", student, teacher):
                own, other = pooled_alike(ours, theirs)
                layers.append(squared_discrepancy(own.flatten(2), other.flatten(2)))
        return total(layers)


def squared_discrepancy(student: Float[Tensor, "B C P"], teacher: Float[Tensor, "B C2 P"]) -> Float[Tensor, "B"]:
    """Compute mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over channels, k(a, b) = (â · b̂)², â = a / ‖a‖₂.

    A channel of zeros, as a dead ReLU gives, has â = 0.
    """
    ours, theirs = unit_rows(student), unit_rows(teacher)
    return _kernel_mean(theirs, theirs) + _kernel_mean(ours, ours) - 2 * _kernel_mean(ours, theirs)


def _kernel_mean(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT).square().mean(dim=(1, 2))
