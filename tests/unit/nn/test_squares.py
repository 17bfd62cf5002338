from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.nn.squares import channel_squares, mean_squares, squares_of_channels, sum_squares

SHAPES = st.sampled_from([(3, 4), (2, 3, 4), (2, 3, 2, 4)])


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(shape=SHAPES, seed=st.integers(0, 999))
def test_squares_are_summed_and_averaged_sample_by_sample(shape: tuple[int, ...], seed: int) -> None:
    a, b = drawn(shape, seed), drawn(shape, seed + 1000)
    torch.testing.assert_close(sum_squares(a, b), (a - b).pow(2).flatten(1).sum(1))
    torch.testing.assert_close(mean_squares(a, b), (a - b).pow(2).flatten(1).mean(1))
    torch.testing.assert_close(channel_squares(a), a.pow(2).sum(1))
    torch.testing.assert_close(
        squares_of_channels(a, b), (a - b).pow(2).flatten(2).sum(2) if a.dim() > 2 else (a - b).pow(2)
    )


@given(shape=SHAPES, seed=st.integers(0, 99))
def test_the_gradients_are_those_of_finite_differences(shape: tuple[int, ...], seed: int) -> None:
    a, b = drawn(shape, seed).requires_grad_(), drawn(shape, seed + 1000).requires_grad_()
    assert torch.autograd.gradcheck(sum_squares, (a, b))
    assert torch.autograd.gradcheck(squares_of_channels, (a, b))
    assert torch.autograd.gradcheck(channel_squares, (a,))


def test_the_memory_layout_is_nothing_to_it() -> None:
    a, b = drawn((2, 3, 4, 5), 0), drawn((2, 3, 4, 5), 1)
    last = a.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sum_squares(last, b), sum_squares(a, b))
    torch.testing.assert_close(squares_of_channels(last, b), squares_of_channels(a, b))
    torch.testing.assert_close(channel_squares(last), channel_squares(a))


@pytest.mark.parametrize("function", [channel_squares, lambda x: sum_squares(x, torch.zeros_like(x))])
def test_zeros_pass_no_gradient(function: object) -> None:
    x = torch.zeros(2, 3, 4, requires_grad=True)
    function(x).sum().backward()  # type: ignore[operator]
    assert x.grad is not None
    assert x.grad.abs().max() == 0


def test_a_side_without_gradient_costs_none() -> None:
    a, b = drawn((2, 3), 0).requires_grad_(), drawn((2, 3), 1)
    sum_squares(a, b).sum().backward()
    assert b.grad is None
    torch.testing.assert_close(a.grad, 2 * (a.detach() - b))
