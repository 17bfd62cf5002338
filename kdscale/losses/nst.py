r"""Neuron selectivity transfer: the student's channels must be active at the same places as the teacher's, as a set.

Formula:
    \mathcal{L} = \sum_{l} \frac{1}{N} \sum_{n} \Big( \frac{1}{C_t^2} \sum_{i,j} k(t_i, t_j) + \frac{1}{C_s^2}
        \sum_{i,j} k(s_i, s_j) - \frac{2}{C_s C_t} \sum_{i,j} k(s_i, t_j) \Big)
    k(a, b) = \Big( \frac{a \cdot b}{\lVert a \rVert_2 \lVert b \rVert_2} \Big)^2, \quad s_i, t_j \text{ channels
        of } F^s_{l,n}, F^t_{l,n} \text{ as vectors over space}

Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv:1707.01219, eq. 5,
with the polynomial kernel (d = 2, c = 0) that it finds best; RepDistiller's weight for it is 50.
Deviation: where sizes differ the larger map is average-pooled, as RepDistiller does.
Reduction: mean over pairs of channels and over samples, sum over layers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from kdscale.api import Batch, Loss, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.pairwise import LEAST
from kdscale.nn.sides import map_sides, paired_shapes, pooled_alike, total

__all__ = ["NeuronSelectivity"]

BIBTEX = """
@misc{huang2017like,
  author = {Huang, Zehao and Wang, Naiyan},
  title = {{Like What You Like: Knowledge Distill via Neuron Selectivity Transfer}},
  year = {2017},
  eprint = {1707.01219},
  archivePrefix = {arXiv}
}
"""


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

    A channel of zeros, as a dead ReLU gives, has â = 0. Differentiable once, by the student.
    """
    found: Tensor = _SquaredDiscrepancy.apply(student, teacher)  # type: ignore[no-untyped-call]
    return found


class _SquaredDiscrepancy(Function):
    """By hand, from products of channels: no map is ever divided by its length, nor kept a second time."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        own, cross, others = student @ student.mT, student @ teacher.mT, teacher @ teacher.mT
        scale, other_scale = _inverse_lengths(own), _inverse_lengths(others)
        for products, rows, columns in ((own, scale, scale), (cross, scale, other_scale)):
            products.mul_(rows[:, :, None]).mul_(columns[:, None])
        others.mul_(other_scale[:, :, None]).mul_(other_scale[:, None])
        ctx.save_for_backward(student, teacher, own, cross, scale, other_scale)
        return _mean_square(others) + _mean_square(own) - 2 * _mean_square(cross)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """By unit channels: 4 (mean_j (ŝ·ŝ_j) ŝ_j - mean_j (ŝ·t̂_j) t̂_j) / C, less its part along ŝ, over ‖s‖."""
        student, teacher, own, cross, scale, other_scale = ctx.saved_tensors
        outer = (4 * grads[0] / own.shape[1])[:, None] * scale
        by_own = own * (outer / own.shape[2])[:, :, None]
        by_cross = cross * (outer / -cross.shape[2])[:, :, None]
        along = (by_own * own).sum(2) + (by_cross * cross).sum(2)
        by_own.diagonal(dim1=1, dim2=2).sub_(along)
        by_own.mul_(scale[:, None])
        by_cross.mul_(other_scale[:, None])
        gradient = (teacher.mT @ by_cross.mT).baddbmm_(student.mT, by_own.mT)  # in place: no second map
        return gradient.mT, None


def _inverse_lengths(products: Float[Tensor, "B C C"]) -> Float[Tensor, "B C"]:
    """1 / ‖a‖₂ of each channel, read off the products; 0 for one without length, which so drops out."""
    squares = products.diagonal(dim1=1, dim2=2)
    return squares.rsqrt().masked_fill_(squares <= LEAST**2, 0.0)


def _mean_square(products: Tensor) -> Tensor:
    lengths: Tensor = vector_norm(products, dim=(1, 2))
    return lengths.square() / products[0].numel()
