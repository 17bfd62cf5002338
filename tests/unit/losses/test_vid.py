from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.vid import VariationalInformation, gaussian_nll

LOGITS = torch.zeros(4, 3)
BATCH = Batch(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4), view=0)


def maps(seed: int, channels: int, size: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(4, channels, size, size)))


def loss(**options: Any) -> VariationalInformation:
    torch.manual_seed(0)
    config = VariationalInformation.Config(**options)
    return VariationalInformation(config, Shapes(3, [(5, 3, 3)], [(6, 3, 3)])).double()


def value(module: VariationalInformation, student: Tensor, teacher: Tensor) -> Tensor:
    return module(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_equals_the_gaussian_log_likelihood(seed: int) -> None:
    mean, target = maps(seed, 6), maps(seed + 1, 6)
    variance = torch.linspace(0.1, 4, 6, dtype=torch.float64)
    spread = variance.sqrt()[:, None, None].expand_as(mean)
    want = -torch.distributions.Normal(mean, spread).log_prob(target).mean((1, 2, 3)) - np.log(2 * np.pi) / 2
    torch.testing.assert_close(gaussian_nll(mean, target, variance), want)


@given(seed=st.integers(0, 999))
def test_the_place_of_the_pixels_is_nothing_to_it(seed: int) -> None:
    module, sides, order = loss(), (maps(seed, 5), maps(seed + 1, 6)), torch.tensor([4, 1, 8, 0, 2, 7, 3, 6, 5])
    moved = [side.flatten(2)[:, :, order].view_as(side) for side in sides]
    torch.testing.assert_close(value(module, *moved), value(module, *sides))


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_units_of_the_features_shift_the_likelihood_by_their_logarithm(seed: int, scale: float) -> None:
    mean, target, variance = maps(seed, 6), maps(seed + 1, 6), torch.full((6,), 0.7, dtype=torch.float64)
    got = gaussian_nll(scale * mean, scale * target, scale**2 * variance)
    torch.testing.assert_close(got, gaussian_nll(mean, target, variance) + float(np.log(scale)))


@given(variance=st.floats(0.01, 50))
def test_variances_start_where_they_are_told(variance: float) -> None:
    module = loss(initial_variance=variance)
    got = torch.nn.functional.softplus(module.raw_variances[0]) + 1e-5
    torch.testing.assert_close(got.detach(), torch.full((6,), variance).double(), rtol=1e-5, atol=1e-6)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    mean, target = maps(0, 1), maps(1, 1)
    error = (mean - target).square().mean().reshape(1)
    best = gaussian_nll(mean, target, error).mean()
    assert all(gaussian_nll(mean, target, error * f).mean() > best for f in (0.8, 1.2))


def test_a_sure_and_right_student_has_a_negative_loss() -> None:
    target = maps(0, 6)
    assert gaussian_nll(target, target, torch.full((6,), 0.1).double()).max() < 0


def test_variances_and_regressor_train() -> None:
    module = loss(hidden=7)
    assert [p.shape[:2] for p in module.regressors.parameters()] == [(7, 5), (7, 7), (6, 7)]
    value(module, maps(0, 5), maps(1, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(("own", "taught"), [(6, 3), (3, 6)])
def test_of_two_sizes_the_larger_map_is_averaged(own: int, taught: int) -> None:
    s, t = maps(0, 5, own), maps(1, 6, taught)

    def small(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, x.shape[2] // 3)

    torch.testing.assert_close(value(loss(), s, t), value(loss(), small(s), small(t)))


def test_pooled_features_are_maps_of_one_pixel() -> None:
    s, t = maps(0, 5, 1), maps(1, 6, 1)
    torch.testing.assert_close(value(loss(), s.flatten(1), t.flatten(1)), value(loss(), s, t))


@pytest.mark.parametrize("raw", [-1e4, 1e4])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_zero_and_huge_features_and_variances_stay_finite(raw: float, scale: float) -> None:
    module = loss().float()
    torch.nn.init.constant_(module.raw_variances[0], raw)
    s = (scale * maps(0, 5).float()).requires_grad_()
    got = value(module, s, scale * maps(1, 6).float())
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in [s, *module.parameters()])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    """But that its own network answers in bf16, where the student does."""
    s, t = maps(0, 5).to(half) * 1000, maps(1, 6).to(half) * 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(loss().float(), s, t)
    assert got.dtype == torch.float32
    close = {"rtol": 0.02, "atol": 0.0} if half == torch.bfloat16 else {}
    torch.testing.assert_close(got, value(loss().float(), s.float(), t.float()), **close)


def test_features_that_are_no_maps_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"vid: .*\[5, 9\]"):
        value(loss(), maps(0, 5).flatten(2), maps(1, 6))


def test_a_variance_must_be_possible() -> None:
    for options in ({"initial_variance": 0.0}, {"initial_variance": 1e-3, "eps": 1e-3}):
        with pytest.raises(ValueError, match="initial_variance"):
            VariationalInformation.Config(**options)
