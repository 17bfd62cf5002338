"""Squared differences, summed in one pass each way."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

__all__ = ["channel_squares", "mean_squares", "squares_of_channels", "sum_squares"]


def sum_squares(first: Float[Tensor, "B *rest"], second: Float[Tensor, "B *rest"]) -> Float[Tensor, "B"]:
    """Sum (first - second)² over everything but samples; once differentiable.

    Only the difference is kept for the backward pass, which is one product.
    """
    found: Tensor = _SumSquares.apply(first, second, 1)  # type: ignore[no-untyped-call]
    return found


def mean_squares(first: Float[Tensor, "B *rest"], second: Float[Tensor, "B *rest"]) -> Float[Tensor, "B"]:
    """Average (first - second)² likewise."""
    return sum_squares(first, second) / math.prod(first.shape[1:])


def squares_of_channels(first: Float[Tensor, "B C *rest"], second: Float[Tensor, "B C *rest"]) -> Float[Tensor, "B C"]:
    """Sum (first - second)² over each channel's positions; once differentiable."""
    found: Tensor = _SumSquares.apply(first, second, 2)  # type: ignore[no-untyped-call]
    return found


def channel_squares(features: Float[Tensor, "B C *rest"]) -> Float[Tensor, "B *rest"]:
    """Sum squares over channels; once differentiable, by one product."""
    found: Tensor = _ChannelSquares.apply(features)  # type: ignore[no-untyped-call]
    return found


class _SumSquares(Function):
    """Differentiates by hand: a square's own backward makes three tensors as large as its input."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, kept: int) -> Tensor:
        gap = first - second
        ctx.save_for_backward(gap)
        if gap.dim() == kept:
            return gap.square()
        # over dimensions as they lie: flattened, a channels-last map would be copied
        rest = tuple(range(kept, gap.dim()))
        if kept > 1:  # a norm over numbers that lie apart is several times slower
            return gap.square().sum(rest)
        lengths: Tensor = vector_norm(gap, dim=rest)
        return lengths.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        [gap] = ctx.saved_tensors
        outer = 2 * grads[0]
        gradient: Tensor = gap * outer.view(*outer.shape, *[1] * (gap.dim() - outer.dim()))
        return gradient, -gradient if ctx.needs_input_grad[1] else None, None


class _ChannelSquares(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        return features.square().sum(dim=1)  # a norm over channels that lie apart is several times slower

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gradient: Tensor = ctx.saved_tensors[0] * (2 * grads[0])[:, None]
        return gradient
