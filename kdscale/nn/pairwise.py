"""How samples of a batch relate: Gram matrices, distances, angles and correlations.

Everything here keeps float32 under autocast: Gram matrices of post-ReLU maps overflow in fp16, and differences
of neighbours vanish in bf16.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from kdscale import ranks
from kdscale.errors import ShapeError

__all__ = [
    "Pairs",
    "added_up",
    "angles",
    "correlations",
    "distances",
    "gathered",
    "gram",
    "own_rows",
    "related_count",
    "related_rows",
    "unit_rows",
]

Pairs = Literal["global", "local"]
"""Which samples are compared: all ranks', as one process would, or only those of one rank."""

NEAR = 1e-6
"""Least distance of two samples."""


def related_rows(term: str, features: Float[Tensor, "B *rest"], pairs: Pairs) -> Float[Tensor, "N D"]:
    """Flatten samples to rows, those of all ranks with `pairs: global`; differentiable.

    Raises:
        ShapeError: there is one sample only, which relates to nothing.
    """
    rows = gathered(features.flatten(1), pairs)
    if len(rows) < 2:
        raise ShapeError(f"{term}: compares samples with each other, and there is one; use a larger train.batch_size")
    return rows


def gathered(rows: Float[Tensor, "B *rest"], pairs: Pairs) -> Float[Tensor, "N *rest"]:
    """This rank's rows, or with `pairs: global` those of all ranks, in rank order; differentiable."""
    return ranks.gather_with_gradient(rows) if pairs == "global" else rows


def added_up(part: Float[Tensor, "*shape"], pairs: Pairs) -> Float[Tensor, "*shape"]:
    """A sum over this rank's samples, or with `pairs: global` over those of all ranks; differentiable."""
    return ranks.sum_with_gradient(part) if pairs == "global" else part


def related_count(own: int, pairs: Pairs) -> int:
    """How many samples are compared where each rank has `own`."""
    return own * ranks.world() if pairs == "global" else own


def own_rows(count: int, pairs: Pairs) -> range:
    """Which of `count` related rows are this rank's own: its share of what grows faster than their square."""
    if pairs == "local":
        return range(count)
    own = count // ranks.world()
    return range(ranks.rank() * own, (ranks.rank() + 1) * own)


def unit_rows(rows: Float[Tensor, "*N D"], eps: float = 1e-12, added: float = 0.0) -> Float[Tensor, "*N D"]:
    """Divide each row by its length plus `added`.

    A row not longer than `eps` has no direction: it becomes zero and passes no gradient, where a quotient by a
    clamped length would pass one of the order of 1 / eps.
    """
    length = vector_norm(rows, dim=-1, keepdim=True)
    long = length > eps
    return torch.where(long, rows, 0.0) / torch.where(long, length + added, 1.0)


def gram(rows: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N N"]:
    """Inner products of all pairs of rows."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.mT


def distances(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Euclidean distances, at least 1e-6 between different samples; two in one place pass no gradient.

    By differences: through the Gram matrix, neighbours far from the origin would lose theirs to rounding.
    """
    apart: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.clamp_min(NEAR)
    return apart.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), 0.0)


def angles(rows: Float[Tensor, "N D"], at: slice) -> Float[Tensor, "A N N"]:
    """Cosines of the angles at some rows between the directions to any two rows; 0 where two of the three coincide."""
    return gram(unit_rows(rows[None] - rows[at, None]))


def correlations(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"], eps: float = 1e-8) -> Float[Tensor, "N"]:
    """Pearson's correlation of each row with its counterpart; `eps` is added to the product of their lengths.

    A row that is constant up to rounding correlates with nothing and passes no gradient.
    """
    first, second = _centred(first), _centred(second)
    lengths: Tensor = vector_norm(first, dim=1) * vector_norm(second, dim=1)
    return (first * second).sum(1) / (lengths + eps)


def _centred(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    rounding = 8 * torch.finfo(rows.dtype).eps * vector_norm(rows, dim=1, keepdim=True)
    return torch.where(vector_norm(centred, dim=1, keepdim=True) > rounding, centred, 0.0)
