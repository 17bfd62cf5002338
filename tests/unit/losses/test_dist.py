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
from kdscale.losses.dist import StrongerTeacher

BATCH = Batch(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)


def logits(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=3, size=(6, 10)))


def value(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    loss = StrongerTeacher(StrongerTeacher.Config(**options), Shapes(10))
    return loss(Outputs(student), Outputs(teacher), BATCH)


@pytest.mark.parity
@given(seed=st.integers(0, 999), t=st.floats(0.5, 16))
def test_equals_the_papers_formula(seed: int, t: float) -> None:
    s, taught = logits(seed), logits(seed + 1000)
    q, p = (np.exp(z.numpy() / t) / np.exp(z.numpy() / t).sum(1, keepdims=True) for z in (s, taught))
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])

    got = value(s, taught, temperature=t, inter=2, intra=3, scale_t2=False)

    np.testing.assert_allclose(got, 2 * inter + 3 * intra, rtol=1e-3, atol=1e-5)  # a tiny column feels the eps


@given(seed=st.integers(0, 999), t=st.floats(0.5, 16))
def test_the_codes_form_is_t_squared_times_the_papers(seed: int, t: float) -> None:
    s, taught = logits(seed), logits(seed + 1)
    got = value(s, taught, temperature=t, scale_t2=True)
    torch.testing.assert_close(got, t**2 * value(s, taught, temperature=t, scale_t2=False))


@given(seed=st.integers(0, 999), shift=st.floats(-5, 5))
def test_a_shift_of_a_samples_logits_is_nothing_to_it(seed: int, shift: float) -> None:
    s, taught = logits(seed), logits(seed + 1)
    moved = s + shift * torch.arange(6.0)[:, None]
    torch.testing.assert_close(value(moved, taught), value(s, taught))


@given(seed=st.integers(0, 999))
def test_the_order_of_samples_and_classes_is_nothing_to_it(seed: int) -> None:
    s, t, order = logits(seed), logits(seed + 1), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(value(s[order], t[order]), value(s, t))
    torch.testing.assert_close(value(s.flip(1), t.flip(1)), value(s, t))


def test_a_student_that_agrees_has_no_loss() -> None:
    assert abs(float(value(logits(0), logits(0)))) < 1e-4


def test_a_part_may_weigh_nothing_but_not_both() -> None:
    s, t = logits(0), logits(1)
    torch.testing.assert_close(value(s, t), value(s, t, intra=0) + value(s, t, inter=0))
    with pytest.raises(ValueError, match="inter and intra"):
        StrongerTeacher.Config(inter=0, intra=0)


@pytest.mark.parametrize("student", [torch.zeros(6, 10), torch.full((6, 10), 0.1), torch.eye(6, 10) * 1e4])
@pytest.mark.parametrize(
    "teacher", [torch.zeros(6, 10), torch.eye(6, 10).flip(0) * 1e4, torch.ones(6, 1) * logits(0)[:1]]
)
def test_constant_and_huge_logits_stay_finite_and_small_in_gradient(student: Tensor, teacher: Tensor) -> None:
    s = student.clone().requires_grad_()
    got = value(s, teacher.float(), temperature=1.0)
    got.backward()
    assert torch.isfinite(got)
    assert s.grad is not None
    assert s.grad.abs().max() < 10


def test_a_sample_alone_has_an_inter_part() -> None:
    s, t = logits(0), logits(1)
    each = [value(s[i : i + 1], t[i : i + 1], intra=0) for i in range(6)]
    torch.testing.assert_close(torch.stack(each).mean(), value(s, t, intra=0))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    s, t = logits(0).to(half), logits(1).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(s, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(s.float(), t.float()))


def test_what_it_cannot_compare_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[6, 9\].*\[6, 10\]"):
        value(torch.zeros(6, 10), torch.zeros(6, 9))
    with pytest.raises(ShapeError, match=r"dist: .*there is one"):
        value(torch.zeros(1, 10), torch.zeros(1, 10))
    with pytest.raises(ShapeError, match="no teacher"):
        StrongerTeacher(StrongerTeacher.Config(), Shapes(10))(Outputs(torch.zeros(6, 10)), None, BATCH)
