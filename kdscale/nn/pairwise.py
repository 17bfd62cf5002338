"""How samples of a batch relate: Gram matrices, distances, angles and correlations.

Everything here keeps float32 under autocast: Gram matrices of post-ReLU maps overflow in fp16, and differences
of neighbours vanish in bf16.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from kdscale import ranks
from kdscale.errors import ShapeError

__all__ = [
    "LEAST",
    "Pairs",
    "added_up",
    "correlations",
    "directions",
    "distances",
    "gathered",
    "gram",
    "inner_products",
    "own_rows",
    "related_count",
    "related_rows",
    "unit_rows",
]

Pairs = Literal["global", "local"]
"""Which samples are compared: all ranks', as one process would, or only those of one rank."""

NEAR = 1e-6
"""Least distance of two samples."""
LEAST = 1e-12
"""Rows that are not longer have no direction."""


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


def unit_rows(rows: Float[Tensor, "*N D"], eps: float = LEAST, added: float = 0.0) -> Float[Tensor, "*N D"]:
    """Divide each row by its length plus `added`.

    A row not longer than `eps` has no direction: it becomes zero and passes no gradient, where a quotient by a
    clamped length would pass one of the order of 1 / eps. Once differentiable.
    """
    unit: Tensor = _UnitRows.apply(rows, eps, added)  # type: ignore[no-untyped-call]
    return unit


def gram(rows: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N N"]:
    """Inner products of all pairs of rows; once differentiable, by one product."""
    with torch.autocast(rows.device.type, enabled=False):
        found: Tensor = _Gram.apply(rows)  # type: ignore[no-untyped-call]
    return found


def inner_products(
    first: Float[Tensor, "*batch N D"], second: Float[Tensor, "*batch M D"]
) -> Float[Tensor, "*batch N M"]:
    """Inner products of every row with every other side's row; once differentiable.

    Gradients lie in memory as the rows do: those of channels-last maps would else be copied by whoever takes them.
    """
    with torch.autocast(first.device.type, enabled=False):
        found: Tensor = _InnerProducts.apply(first, second)  # type: ignore[no-untyped-call]
    return found


def distances(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Euclidean distances, at least 1e-6 between different samples; two in one place pass no gradient.

    By differences: through the Gram matrix, neighbours far from the origin would lose theirs to rounding.
    """
    apart: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.clamp_min(NEAR)
    return apart.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), 0.0)


def directions(rows: Float[Tensor, "N D"], at: slice) -> tuple[Float[Tensor, "A N D"], Float[Tensor, "A N 1"]]:
    """Directions from some rows to every row, of length 1, and the distances; infinite for a row in the same place.

    For use without gradients: it is what angles are differentiated by hand with.
    """
    towards = rows[None] - rows[at, None]
    length = vector_norm(towards, dim=-1, keepdim=True)
    length = torch.where(length > LEAST, length, torch.inf)
    return towards.div_(length), length


def correlations(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"], eps: float = 1e-8) -> Float[Tensor, "N"]:
    """Pearson's correlation of each row with its counterpart; `eps` is added to the product of their lengths.

    A row that is constant up to rounding correlates with nothing and passes no gradient.
    """
    found: Tensor = _Correlations.apply(first, second, eps)  # type: ignore[no-untyped-call]
    return found


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their mean, and their lengths (N, 1): infinite where a row is constant up to rounding."""
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    length: Tensor = vector_norm(centred, dim=1, keepdim=True)
    rounding = 8 * torch.finfo(rows.dtype).eps * torch.hypot(length, mean * rows.shape[1] ** 0.5)
    return centred, torch.where(length > rounding, length, torch.inf)


class _UnitRows(Function):
    """Keeps what it gives and one number a row: the chain of single operations keeps, and makes, three times that."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float, added: float) -> Tensor:
        length = vector_norm(rows, dim=-1, keepdim=True)
        divisor = torch.where(length > eps, length + added, torch.inf)
        unit = rows / divisor
        ctx.save_for_backward(unit, length, divisor)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        unit, length, divisor = ctx.saved_tensors
        along = (unit * grads[0]).sum(-1, keepdim=True) * (divisor / length).nan_to_num(0.0, posinf=0.0)
        return torch.addcmul(grads[0], unit, along, value=-1).div_(divisor), None, None


class _Gram(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows @ rows.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        [rows] = ctx.saved_tensors
        return _combined(grads[0] + grads[0].mT, rows, rows)


class _InnerProducts(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        return first @ second.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second = ctx.saved_tensors
        by_first, by_second = ctx.needs_input_grad
        return (
            _combined(grads[0], second, first) if by_first else None,
            _combined(grads[0].mT, first, second) if by_second else None,
        )


def _combined(weights: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Each row a weighted sum of `rows`, laid out in memory as `like` is."""
    return (rows.mT @ weights.mT).mT if like.mT.is_contiguous() else weights @ rows


class _Correlations(Function):
    """Differentiates by hand: of centred rows the gradient is centred too, and stays in their plane."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, eps: float) -> Tensor:
        (a, a_length), (b, b_length) = _centred(first), _centred(second)
        lengths = a_length * b_length + eps
        found = (a * b).sum(1, keepdim=True) / lengths
        ctx.save_for_backward(a, b, a_length, b_length, lengths, found)
        return found[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b, a_length, b_length, lengths, found = ctx.saved_tensors
        outer = grads[0][:, None] / lengths
        by_first, by_second = ctx.needs_input_grad[:2]
        return (
            _tangent(a, b, found * b_length / a_length, outer) if by_first else None,
            _tangent(b, a, found * a_length / b_length, outer) if by_second else None,
            None,
        )


def _tangent(own: Tensor, other: Tensor, share: Tensor, outer: Tensor) -> Tensor:
    """Gradient of a correlation: (other - share · own) · outer; nothing where a length is infinite."""
    return torch.addcmul(other, own, share.nan_to_num(0.0), value=-1).mul_(outer)
