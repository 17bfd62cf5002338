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
from kdscale.losses.logits import LogitRegression

BATCH = Batch(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64), torch.arange(7), view=0)


def value(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    loss = LogitRegression(LogitRegression.Config(**options), Shapes(classes=student.shape[1]))
    return loss(Outputs(student), Outputs(teacher), BATCH)


def pair(seed: int) -> tuple[Tensor, Tensor]:
    student, teacher = torch.from_numpy(np.random.default_rng(seed).normal(scale=5, size=(2, 7, 11)))
    return student, teacher


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_the_papers_form_is_half_the_squared_distance(seed: int) -> None:
    student, teacher = pair(seed)
    want = 0.5 * np.linalg.norm(student.numpy() - teacher.numpy(), axis=1) ** 2
    np.testing.assert_allclose(value(student, teacher, reduction="paper"), want, rtol=1e-9)
    np.testing.assert_allclose(value(student, teacher), want * 2 / 11, rtol=1e-9)


@given(seed=st.integers(0, 999), shift=st.floats(-50, 50))
def test_a_shift_of_all_logits_counts_unless_centred(seed: int, shift: float) -> None:
    student, teacher = pair(seed)
    centred = value(student + shift, teacher, center=True)
    torch.testing.assert_close(centred, value(student, teacher, center=True))
    gap = value(student + shift, teacher) - value(student, teacher)
    mean = (student - teacher).mean(dim=1)
    torch.testing.assert_close(gap, shift**2 + 2 * shift * mean, rtol=1e-6, atol=1e-8)


@given(seed=st.integers(0, 999), times=st.integers(2, 4))
def test_the_mean_keeps_its_weight_over_any_number_of_classes_and_the_papers_sum_grows(seed: int, times: int) -> None:
    student, teacher = pair(seed)
    more = [z.repeat(1, times) for z in (student, teacher)]
    torch.testing.assert_close(value(*more), value(student, teacher))
    torch.testing.assert_close(value(*more, reduction="paper"), times * value(student, teacher, reduction="paper"))


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    student = torch.randn(7, 11, requires_grad=True)
    values = value(student, student.detach())
    values.sum().backward()
    assert values.tolist() == [0.0] * 7
    torch.testing.assert_close(student.grad, torch.zeros(7, 11))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_logits_far_apart_do_not_overflow_in_half_precision(half: torch.dtype) -> None:
    student = torch.full((7, 11), 1e4, dtype=half, requires_grad=True)
    teacher = torch.full((7, 11), -1e4, dtype=half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = value(student, teacher)
    values.sum().backward()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, (student.detach().float() - teacher.float()).square().mean(dim=1))
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_other_classes_than_the_teachers_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"logits: .*\[7, 10\].*\[7, 11\]"):
        value(torch.zeros(7, 11), torch.zeros(7, 10))
