from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.losses.kd import soft_targets
from kdscale.losses.mlkd import MultiLevelLogits, batch_distance, class_distance

BATCH = Batch(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)


def loss(**options: Any) -> MultiLevelLogits:
    return MultiLevelLogits(MultiLevelLogits.Config(**options), Shapes(classes=5))


def logits(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    student, teacher = np.random.default_rng(seed).normal(scale=scale, size=(2, 6, 5))
    return torch.from_numpy(student), torch.from_numpy(teacher)


def value(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    result: Tensor = loss(**options)(Outputs(student), Outputs(teacher), BATCH)
    return result


@given(seed=st.integers(0, 999))
def test_equals_the_formula_entry_by_entry(seed: int) -> None:
    student, teacher = logits(seed)
    want = 0.0
    for t in (2.0, 4.0):
        q, p = (np.exp(z / t) / np.exp(z / t).sum(1, keepdims=True) for z in (student.numpy(), teacher.numpy()))
        want += t**2 * (p * np.log(p / q)).sum() / 6
        want += sum((q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 for i in range(5) for j in range(5)) / 5
        want += sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in range(6) for j in range(6)) / 6
    np.testing.assert_allclose(value(student, teacher, softened_at=(2, 4)), want, rtol=1e-9)


@given(seed=st.integers(0, 999))
def test_levels_are_weighed_and_added(seed: int) -> None:
    student, teacher = logits(seed)
    one = {"softened_at": (3.0,)}
    q, p = (student / 3).softmax(1), (teacher / 3).softmax(1)
    alone = value(student, teacher, samples=1, classes=0, batch=0, **one)
    torch.testing.assert_close(alone, soft_targets(student, teacher, 3.0, 3.0).mean())
    got = value(student, teacher, samples=0, classes=2, batch=3, **one)
    torch.testing.assert_close(got, 2 * class_distance(q, p) + 3 * batch_distance(q, p))


@given(seed=st.integers(0, 999), shift=st.floats(-50, 50))
def test_the_order_of_samples_and_a_shift_of_a_row_change_nothing(seed: int, shift: float) -> None:
    student, teacher = logits(seed)
    plain, order = value(student, teacher), torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(value(student[order], teacher[order]), plain)
    torch.testing.assert_close(value(student + shift, teacher), plain)


@given(seed=st.integers(0, 999))
def test_another_order_of_samples_on_one_side_leaves_how_classes_go_together(seed: int) -> None:
    q, p = (z.softmax(1) for z in logits(seed))
    torch.testing.assert_close(class_distance(q.flip(0), p), class_distance(q, p))
    torch.testing.assert_close(batch_distance(q.flip(1), p), batch_distance(q, p))


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    student, _ = logits(0)
    student.requires_grad_()
    got = value(student, student.detach())
    got.backward()
    assert student.grad is not None
    torch.testing.assert_close(got, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


def test_huge_and_constant_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0], [0.0] * 5] * 3, requires_grad=True)
    got = value(student, -student.detach())
    got.backward()
    assert student.grad is not None
    assert torch.isfinite(got)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    student, teacher = (z.to(half) for z in logits(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(student.float(), teacher.float()))


@pytest.mark.parametrize("options", [{"softened_at": ()}, {"softened_at": (0.0,)}, {"classes": -1.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        loss(**options)
