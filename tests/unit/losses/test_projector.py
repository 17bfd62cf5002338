from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.projector import Projector, cross_correlation, log_sum, standardise

FORMS = ["log_sum", "cross_correlation"]
BATCH = Batch(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)


def loss(student: tuple[int, ...] = (4,), teacher: tuple[int, ...] = (5,), **options: Any) -> Projector:
    torch.manual_seed(0)
    return Projector(Projector.Config(**options), Shapes(2, [student], [teacher]))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed))


def value(projector: Projector, student: Tensor, teacher: Tensor) -> Tensor:
    result: Tensor = projector(Outputs(torch.zeros(6, 2), [student]), Outputs(torch.zeros(6, 2), [teacher]), BATCH)
    return result


def reflecting(**options: Any) -> Projector:
    """One whose projector hands its input on."""
    projector = loss((5,), (5,), **options)
    with torch.no_grad():
        for linear in projector.projectors:
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(torch.eye(5))
            linear.bias.zero_()
    return projector


@given(seed=st.integers(0, 999), eps=st.sampled_from([1e-5, 1e-4]))
def test_standardising_is_batch_norm_in_training_without_weights(seed: int, eps: float) -> None:
    rows = 3 * draw(seed, 5).double() + 2
    torch.testing.assert_close(standardise(rows, eps), nn.BatchNorm1d(5, eps=eps, affine=False).double()(rows))


@given(seed=st.integers(0, 999), alpha=st.floats(1, 5))
def test_equals_the_formulas(seed: int, alpha: float) -> None:
    a, b = draw(seed, 5).double(), draw(seed + 1, 5).double()
    torch.testing.assert_close(log_sum(a, b, alpha), ((a - b).abs() ** alpha).sum().log())
    c = torch.diagonal(a.T @ b) / 6
    torch.testing.assert_close(cross_correlation(a, b, alpha), (((c - 1).abs() ** alpha).sum() + 1e-5).log())


@given(seed=st.integers(0, 999), scale=st.floats(0.5, 50), shift=st.floats(-5, 5), form=st.sampled_from(FORMS))
def test_scale_and_shift_of_the_teachers_dimensions_change_nothing(
    seed: int, scale: float, shift: float, form: str
) -> None:
    projector, student, teacher = loss(form=form, bn_eps=1e-12).double(), draw(seed, 4), draw(seed + 1, 5)
    plain = value(projector, student.double(), teacher.double())
    torch.testing.assert_close(value(projector, student.double(), scale * teacher.double() + shift), plain)


@given(seed=st.integers(0, 999), form=st.sampled_from(FORMS))
def test_the_order_of_samples_changes_nothing(seed: int, form: str) -> None:
    projector, student, teacher = loss(form=form), draw(seed, 4), draw(seed + 1, 5)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(value(projector, student[order], teacher[order]), value(projector, student, teacher))


@given(seed=st.integers(0, 999))
def test_the_batch_twice_over_adds_log_two_to_the_log_of_the_sum(seed: int) -> None:
    a, b = draw(seed, 5).double(), draw(seed + 1, 5).double()
    twice = log_sum(torch.cat([a, a]), torch.cat([b, b]), 4.0) - log_sum(a, b, 4.0)
    torch.testing.assert_close(twice, torch.tensor(2.0, dtype=torch.float64).log())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_features_that_agree_have_a_finite_loss_and_gradient(form: str, alpha: float) -> None:
    student = draw(0, 5).requires_grad_()
    low = value(reflecting(form=form, alpha=alpha), student, student.detach())
    low.backward()
    assert student.grad is not None
    assert torch.isfinite(low)
    assert torch.isfinite(student.grad).all()
    assert low < value(reflecting(form=form, alpha=alpha), student, draw(1, 5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_constant_features_stay_finite(form: str, fill: float) -> None:
    student = torch.full((6, 4), fill, requires_grad=True)
    got = value(loss(form=form), student, torch.full((6, 5), fill))
    got.backward()
    assert student.grad is not None
    assert torch.isfinite(got)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype, form: str) -> None:
    student, teacher = (300 * draw(0, 4)).to(half), draw(1, 5).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(loss(form=form), student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(loss(form=form), student.float(), teacher.float()))


def test_maps_are_averaged_over_their_positions() -> None:
    student, teacher = draw(0, 4, 3, 3), draw(1, 5, 2, 2)
    got = value(loss((4, 3, 3), (5, 2, 2)), student, teacher)
    torch.testing.assert_close(got, value(loss(), student.mean((2, 3)), teacher.mean((2, 3))))


def test_the_projector_trains() -> None:
    projector = loss()
    value(projector, draw(0, 4), draw(1, 5)).backward()
    weight = projector.projectors[0].weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_one_sample_is_refused() -> None:
    with pytest.raises(ShapeError, match="batch_size"):
        standardise(torch.zeros(1, 5), 1e-4)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"form": "mse"}, {"bn_eps": 0.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Projector.Config(**options)
