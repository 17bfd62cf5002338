from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.kd import SoftTargets, soft_targets

BATCH = Batch(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64), torch.arange(7), view=0)


def logits(seed: int, scale: float = 5.0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    student, teacher = np.random.default_rng(seed).normal(scale=scale, size=(2, 7, 11))
    return student, teacher


def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.exp(z) / np.exp(z).sum(1, keepdims=True))


def loss(**options: Any) -> SoftTargets:
    return SoftTargets(SoftTargets.Config(**options), Shapes(classes=11))


@pytest.mark.parity
@given(seed=st.integers(0, 999), t=st.floats(0.5, 16))
def test_equals_the_papers_formula(seed: int, t: float) -> None:
    student, teacher = logits(seed)
    q, p = softmax(student / t), softmax(teacher / t)

    got = soft_targets(torch.from_numpy(student), torch.from_numpy(teacher), t, t)

    np.testing.assert_allclose(got, t**2 * (p * np.log(p / q)).sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parity
@given(seed=st.integers(0, 999), t=st.floats(0.5, 16))
def test_the_cross_entropy_form_differs_by_the_teachers_entropy(seed: int, t: float) -> None:
    student, teacher = (torch.from_numpy(z) for z in logits(seed))
    p = softmax(teacher.numpy() / t)

    gap = soft_targets(student, teacher, t, t, "ce") - soft_targets(student, teacher, t, t, "kl")

    np.testing.assert_allclose(gap, -(t**2) * (p * np.log(p)).sum(1), rtol=1e-7, atol=1e-10)


@given(seed=st.integers(0, 999), t=st.floats(0.5, 16))
def test_gradient_is_t_times_the_difference_of_the_distributions(seed: int, t: float) -> None:
    student, teacher = (torch.from_numpy(z) for z in logits(seed))
    student.requires_grad_()
    loss(temperature=t)(Outputs(student), Outputs(teacher), BATCH).sum().backward()
    want = t * (softmax(student.detach().numpy() / t) - softmax(teacher.numpy() / t))
    np.testing.assert_allclose(student.grad, want, rtol=1e-7, atol=1e-10)


@given(seed=st.integers(0, 999), ours=st.floats(-50, 50), theirs=st.floats(-50, 50), form=st.sampled_from(["kl", "ce"]))
def test_a_shift_of_either_sides_logits_and_the_order_of_classes_change_nothing(
    seed: int, ours: float, theirs: float, form: str
) -> None:
    student, teacher = (torch.from_numpy(z) for z in logits(seed))
    want, order = loss(form=form)(Outputs(student), Outputs(teacher), BATCH), torch.randperm(11)
    shifted = loss(form=form)(Outputs(student + ours), Outputs(teacher + theirs), BATCH)
    moved = loss(form=form)(Outputs(student[:, order]), Outputs(teacher[:, order]), BATCH)
    torch.testing.assert_close(shifted, want)
    torch.testing.assert_close(moved, want)


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    student = torch.randn(7, 11, requires_grad=True)
    values = loss()(Outputs(student), Outputs(student.detach()), BATCH)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(7))
    torch.testing.assert_close(student.grad, torch.zeros(7, 11))


@pytest.mark.parity
@given(seed=st.integers(0, 999), t=st.floats(0.5, 16))
def test_elementmean_is_torchs_default_reduction(seed: int, t: float) -> None:
    student, teacher = (torch.from_numpy(z) for z in logits(seed))
    got = loss(temperature=t, reduction="elementmean")(Outputs(student), Outputs(teacher), BATCH).mean()
    log_q, p = (student / t).log_softmax(1), (teacher / t).softmax(1)
    with pytest.warns(UserWarning, match="batchmean"):  # torch itself warns of what TAKD's code does
        want = t**2 * torch.nn.functional.kl_div(log_q, p, reduction="mean")
    torch.testing.assert_close(got, want)


def test_an_untempered_student_faces_the_softened_teacher_without_t_squared() -> None:
    student, teacher = (torch.from_numpy(z) for z in logits(3))
    got = loss(temperature=20.0, temper_student=False)(Outputs(student), Outputs(teacher), BATCH)
    p, q = softmax(teacher.numpy() / 20), softmax(student.numpy())
    np.testing.assert_allclose(got, (p * np.log(p / q)).sum(1), rtol=1e-9)


@pytest.mark.parametrize("form", ["kl", "ce"])
def test_huge_logits_stay_finite(form: str) -> None:
    student = torch.tensor([[3e4, -3e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-3e4, 3e4, 1e4]])
    values = loss(temperature=1.0, form=form)(Outputs(student), Outputs(teacher), BATCH)
    values.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    student, teacher = torch.randn(7, 1000).to(half), torch.randn(7, 1000).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss()(Outputs(student), Outputs(teacher), BATCH)
    torch.testing.assert_close(got, loss()(Outputs(student.float()), Outputs(teacher.float()), BATCH))
    assert got.dtype == torch.float32


def test_other_classes_than_the_teachers_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[7, 10\].*\[7, 11\]"):
        loss()(Outputs(torch.zeros(7, 11)), Outputs(torch.zeros(7, 10)), BATCH)


def test_a_term_without_teacher_is_refused() -> None:
    with pytest.raises(ShapeError, match="no teacher"):
        loss()(Outputs(torch.zeros(7, 11)), None, BATCH)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"reduction": "sum"}, {"T": 4}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SoftTargets.Config(**options)
