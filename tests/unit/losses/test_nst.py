from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.nst import NeuronSelectivity

LOGITS = torch.zeros(4, 3)
BATCH = Batch(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4), view=0)
SEEDS = st.integers(0, 999)


def value(student: Tensor, teacher: Tensor) -> Tensor:
    loss = NeuronSelectivity(
        NeuronSelectivity.Config(), Shapes(3, [tuple(student.shape[1:])], [tuple(teacher.shape[1:])])
    )
    return loss(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


def maps(seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(4, 3, 5, 5))), torch.from_numpy(rng.normal(size=(4, 6, 5, 5)))


@pytest.mark.parity
@given(seed=SEEDS)
def test_equals_the_papers_formula(seed: int) -> None:
    student, teacher = maps(seed)
    for i, got in enumerate(value(student, teacher)):
        s, t = ([c.ravel() / np.linalg.norm(c) for c in f[i].numpy()] for f in (student, teacher))

        def summed(first: list[np.ndarray], second: list[np.ndarray]) -> float:  # type: ignore[type-arg]
            return float(sum((a @ b) ** 2 for a in first for b in second))

        want = summed(t, t) / 6**2 + summed(s, s) / 3**2 - 2 * summed(s, t) / (3 * 6)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@given(seed=SEEDS)
def test_the_order_the_sign_and_the_scale_of_channels_do_not_count(seed: int) -> None:
    student, teacher = maps(seed)
    want = value(student, teacher)
    factors = torch.tensor([0.1, -1.0, 30.0], dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(value(factors * student, teacher), want)
    torch.testing.assert_close(value(student, teacher.flip(1)), want)


@given(seed=SEEDS)
def test_it_is_never_negative_and_zero_for_the_same_set_of_channels(seed: int) -> None:
    student, teacher = maps(seed)
    assert (value(student, teacher) > 0).all()
    twice = torch.cat([student, student.flip(1)], dim=1)
    torch.testing.assert_close(value(student, twice), torch.zeros(4, dtype=torch.float64))


def test_the_larger_map_is_pooled() -> None:
    small, large = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 4, 4)
    torch.testing.assert_close(value(small, large), value(small, torch.nn.functional.avg_pool2d(large, 2)))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 1), (1, 0), (1, 1), (6e4, 6e4)])
def test_dead_equal_and_large_channels_stay_finite(ours: float, theirs: float, half: torch.dtype) -> None:
    student = torch.full((4, 3, 5, 5), ours, dtype=half, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = value(student, torch.full((4, 6, 5, 5), theirs, dtype=half))
    values.sum().backward()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.full((4,), float(bool(ours) != bool(theirs))))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-3, rtol=0)


def test_a_dead_channel_beside_live_ones_gets_no_gradient() -> None:
    student, teacher = maps(0)
    student[:, 1] = 0
    student.requires_grad_()
    value(student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad[:, 1].abs().max() == 0
    assert student.grad[:, 0].abs().max() > 0


def test_products_are_summed_in_float32_under_autocast() -> None:
    student, teacher = (f.float() for f in maps(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value(student, teacher)
    assert torch.equal(inside, value(student, teacher))


def test_features_without_space_are_refused() -> None:
    with pytest.raises(ShapeError, match="one position"):
        value(torch.randn(4, 8), torch.randn(4, 8))
