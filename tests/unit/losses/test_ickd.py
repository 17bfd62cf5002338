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
from kdscale.losses.ickd import InterChannel, channel_gap

LOGITS = torch.zeros(4, 3)
BATCH = Batch(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4), view=0)


def maps(seed: int, channels: int, size: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(4, channels, size, size)))


def loss(own: int = 5, taught: int = 6, **options: Any) -> InterChannel:
    torch.manual_seed(0)
    return InterChannel(InterChannel.Config(**options), Shapes(3, [(own, 3, 3)], [(taught, 3, 3)])).double()


def value(module: InterChannel, student: Tensor, teacher: Tensor) -> Tensor:
    return module(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_equals_the_papers_formula(seed: int) -> None:
    s, t = maps(seed, 6), maps(seed + 1, 6, size=5)
    for i, got in enumerate(channel_gap(s, t)):
        g, h = (f[i].flatten(1).numpy() @ f[i].flatten(1).numpy().T for f in (s, t))
        g, h = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (g, h))
        assert float(got) == pytest.approx(((g - h) ** 2).sum() / 6, rel=1e-10)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_neither_the_place_of_the_pixels_nor_the_scale_matters(seed: int, scale: float) -> None:
    s = maps(seed, 6)
    copy = scale * s.flatten(2)[:, :, torch.tensor([4, 1, 8, 0, 2, 7, 3, 6, 5])].view_as(s)
    assert float(channel_gap(copy, s).max()) < 1e-20


@given(seed=st.integers(0, 999))
def test_the_order_of_the_channels_is_nothing_to_it(seed: int) -> None:
    s, t, order = maps(seed, 6), maps(seed + 1, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(channel_gap(s[:, order], t[:, order]), channel_gap(s, t))


def test_the_reductions_differ_by_channels_and_samples() -> None:
    s, t = maps(0, 5), maps(1, 6)
    plain = value(loss(), s, t)
    torch.testing.assert_close(value(loss(reduction="paper"), s, t), plain / 6)
    torch.testing.assert_close(value(loss(reduction="imagenet"), s, t), plain / 4)


def test_pooled_features_are_maps_of_one_pixel() -> None:
    s, t = maps(0, 5, size=1), maps(1, 6, size=1)
    torch.testing.assert_close(value(loss(), s.flatten(1), t.flatten(1)), value(loss(), s, t))


def test_features_that_are_no_maps_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"ickd: .*\[5, 9\]"):
        value(loss(), maps(0, 5).flatten(2), maps(1, 6))


@pytest.mark.parametrize(
    "student", [torch.zeros(4, 5, 3, 3), torch.ones(4, 5, 3, 3), torch.eye(3).expand(4, 5, 3, 3) * 1e4]
)
def test_zero_and_identical_features_stay_finite_and_small_in_gradient(student: Tensor) -> None:
    s, t = student.double().requires_grad_(), maps(1, 6)
    t[0] = 0
    got = value(loss(), s, t)
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert s.grad is not None
    assert s.grad.abs().max() < 1e3


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    """But that its own network answers in bf16, where the student does."""
    s, t = maps(0, 5).to(half) * 1000, maps(1, 6).to(half) * 1000
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(loss().float(), s, t)
    assert got.dtype == torch.float32
    close = {"rtol": 0.02, "atol": 0.0} if half == torch.bfloat16 else {}
    torch.testing.assert_close(got, value(loss().float(), s.float(), t.float()), **close)


def test_the_embedding_trains() -> None:
    module = loss()
    value(module, maps(0, 5), maps(1, 6)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
