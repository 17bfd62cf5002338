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
from kdscale.losses.kd import SoftTargets
from kdscale.modifiers.zscore import ZScore, standardise

BATCH = Batch(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64), torch.arange(7), view=0)


def zscore(**options: Any) -> ZScore:
    return ZScore(ZScore.Config(**options), Shapes(classes=11))


def logits(seed: int) -> tuple[Tensor, Tensor]:
    student, teacher = np.random.default_rng(seed).normal(2, 5, size=(2, 7, 11))
    return torch.from_numpy(student), torch.from_numpy(teacher)


def distance(student: Tensor, teacher: Tensor, modifier: ZScore) -> Tensor:
    kd = SoftTargets(SoftTargets.Config(temperature=2.0), Shapes(classes=11))
    value: Tensor = kd(*modifier.before(Outputs(student), Outputs(teacher), BATCH), BATCH)
    return value


@given(seed=st.integers(0, 999), std=st.sampled_from(["sample", "population"]))
def test_equals_the_formula_on_both_sides(seed: int, std: str) -> None:
    student, teacher = logits(seed)
    features = [torch.ones(7, 2)]
    got = zscore(std=std).before(Outputs(student, features), Outputs(teacher, features), BATCH)
    for z, outputs in zip((student.numpy(), teacher.numpy()), got, strict=True):
        want = (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=int(std == "sample"), keepdims=True) + 1e-7)
        assert outputs is not None
        np.testing.assert_allclose(outputs.logits, want, rtol=1e-9, atol=1e-12)
        assert outputs.features is features


@given(seed=st.integers(0, 999), shift=st.floats(-50, 50), scale=st.floats(0.1, 50))
def test_shift_and_positive_scale_of_either_side_change_nothing(seed: int, shift: float, scale: float) -> None:
    student, teacher = logits(seed)
    plain = distance(student, teacher, zscore())
    torch.testing.assert_close(distance(scale * student + shift, teacher, zscore()), plain, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(distance(student, scale * teacher + shift, zscore()), plain, rtol=1e-5, atol=1e-8)


@given(seed=st.integers(0, 999))
def test_the_order_of_classes_survives(seed: int) -> None:
    student, _ = logits(seed)
    assert standardise(student).argsort(1).equal(student.argsort(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("constant", [0.0, 3.0, 1e4, -1e4])
def test_a_constant_row_becomes_zeros_with_a_finite_gradient(constant: float, dtype: torch.dtype) -> None:
    student = torch.randn(7, 11).to(dtype)
    student[3] = constant
    student.requires_grad_()
    values = distance(student, torch.full((7, 11), constant).to(dtype), zscore())
    values.sum().backward()
    assert values.dtype == torch.float32
    assert standardise(student)[3].abs().max() == 0
    assert student.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


def test_large_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, *[0.0] * 9]] * 7, requires_grad=True)
    values = distance(student, -student.detach(), zscore())
    values.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


def test_a_term_without_teacher_keeps_none() -> None:
    student, teacher = zscore().before(Outputs(torch.randn(7, 11)), None, BATCH)
    assert teacher is None
    torch.testing.assert_close(student.logits.std(1), torch.ones(7), rtol=1e-5, atol=1e-5)


def test_one_class_is_refused() -> None:
    with pytest.raises(ShapeError, match="two or more"):
        ZScore(ZScore.Config(), Shapes(classes=1))


@pytest.mark.parametrize("options", [{"std": "unbiased"}, {"eps": 0.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        zscore(**options)
