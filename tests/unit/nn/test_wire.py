"""What a wire does to the values that pass it, and how it comes by its range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.nn.sync_bn import average_buffers
from kdscale.nn.wire import MOMENTUM, Wire


def wire(low: float, high: float) -> Wire:
    """In evaluation, after it has seen this range."""
    made = Wire()
    made(torch.tensor([[low, high]]))
    return made.eval()


@given(st.integers(0, 999), st.floats(-50, 50), st.floats(0.01, 100))
def test_what_lies_in_the_range_comes_back_within_half_a_step(seed: int, low: float, extent: float) -> None:
    values = low + extent * torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    one = wire(low, low + extent)
    codes = one.write(values)
    assert codes.dtype == torch.uint8
    assert codes.shape == values.shape
    rounding = 1e-5 * (abs(low) + extent)  # of float32, which holds neither ends nor steps exactly
    assert (one.read(codes) - values).abs().max() <= extent / 255 / 2 + rounding
    assert torch.equal(one(values), one.read(codes))
    assert torch.equal(one.write(one.read(codes)), codes)  # what was read and is sent again is the same


def test_the_ends_of_the_range_are_the_ends_of_a_byte_and_what_lies_beyond_is_sent_as_they_are() -> None:
    codes = wire(-2.0, 3.0).write(torch.tensor([-9.0, -2.0, 3.0, 9.0]))
    assert codes.tolist() == [0, 0, 255, 255]


def test_training_changes_no_value_and_no_gradient() -> None:
    values = torch.linspace(-3, 3, 12).view(3, 4).requires_grad_()
    passed = Wire()(values)
    assert torch.equal(passed, values)
    passed.sum().backward()
    assert torch.equal(values.grad, torch.ones(3, 4))  # type: ignore[arg-type]


def test_the_first_batch_is_the_range_and_later_ones_move_it() -> None:
    one = Wire()
    one(torch.tensor([-1.0, 4.0]))
    assert (one.low.item(), one.high.item()) == (-1.0, 4.0)
    one(torch.tensor([-2.0, 9.0]))
    assert one.low.item() == pytest.approx(-1.0 - MOMENTUM)
    assert one.high.item() == pytest.approx(4.0 + 5 * MOMENTUM)
    one.eval()(torch.tensor([-100.0, 100.0]))
    assert one.high.item() == pytest.approx(4.0 + 5 * MOMENTUM)


def test_uncoded_it_lets_values_pass_and_codes_again_afterwards() -> None:
    one, values = wire(0.0, 1.0), torch.tensor([0.1234, 0.9])
    with one.uncoded():
        assert torch.equal(one(values), values)
    assert not torch.equal(one(values), values)


@pytest.mark.parametrize("seen", [None, 2.5])
def test_before_it_has_seen_two_values_it_stays_finite(seen: float | None) -> None:
    one = Wire()
    if seen is not None:
        one(torch.full((4,), seen))
    assert torch.isfinite(one.eval()(torch.tensor([-1e6, 0.0, 2.5, 1e6]))).all()


def test_the_dtype_of_values_stays() -> None:
    assert wire(0.0, 1.0)(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_its_range_is_averaged_over_ranks_with_the_statistics_of_batchnorm() -> None:
    both = torch.nn.Sequential(torch.nn.BatchNorm1d(2), Wire())
    assert set(average_buffers(both)) == {"0.running_mean", "0.running_var", "1.low", "1.high"}
