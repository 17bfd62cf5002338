from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.losses.pad import PrimeAware

BATCH = Batch(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)
KINDS = ["dimension", "sample", "none"]


def loss(student: tuple[int, ...] = (4,), teacher: tuple[int, ...] = (4,), **options: Any) -> PrimeAware:
    torch.manual_seed(0)
    return PrimeAware(PrimeAware.Config(**options), Shapes(2, [student], [teacher]))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(seed))


def value(pad: PrimeAware, student: Tensor, teacher: Tensor) -> Tensor:
    result: Tensor = pad(Outputs(torch.zeros(6, 2), [student]), Outputs(torch.zeros(6, 2), [teacher]), BATCH)
    return result


@given(seed=st.integers(0, 999), reduction=st.sampled_from(["mean", "sum"]))
def test_equals_the_formula_of_either_variance(seed: int, reduction: str) -> None:
    s, t = draw(seed, 4), draw(seed + 1, 4)

    def reduced(x: Tensor) -> Tensor:
        return x.mean(1) if reduction == "mean" else x.sum(1)

    for kind in ("dimension", "sample"):
        pad = loss(variance=kind, reduction=reduction)
        lv = pad.heads[0](s)
        error = (t - s) ** 2 if kind == "dimension" else reduced((t - s) ** 2)[:, None]
        torch.testing.assert_close(value(pad, s, t), reduced(error / (1e-6 + lv.exp()) + lv))


@pytest.mark.parametrize("kind", KINDS)
def test_its_figure_is_the_mean_weight_of_an_error(kind: str) -> None:
    s, t, pad = draw(0, 4), draw(1, 4), loss(variance=kind)
    value(pad, s, t)
    want = {} if kind == "none" else {"weight": (1 / (1e-6 + pad.heads[0](s).exp())).mean().detach()}
    assert pad.measured.keys() == set(pad.figures) == want.keys()
    torch.testing.assert_close(dict(pad.measured), want)


@given(seed=st.integers(0, 999))
def test_without_variance_it_is_the_plain_squared_error(seed: int) -> None:
    s, t = draw(seed, 4), draw(seed + 1, 4)
    torch.testing.assert_close(value(loss(variance="none"), s, t), (t - s).square().mean(1))
    assert not list(loss(variance="none").parameters())


@pytest.mark.parametrize("kind", ["dimension", "sample"])
def test_a_head_of_zeros_gives_the_plain_squared_error(kind: str) -> None:
    pad = loss(variance=kind, eps=0.0)
    norm = pad.heads[0].get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d)
    nn.init.zeros_(norm.weight)
    s, t = draw(0, 4), draw(1, 4)
    torch.testing.assert_close(value(pad, s, t), value(loss(variance="none"), s, t))


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_and_every_part_train(kind: str) -> None:
    student, pad = draw(0, 3).requires_grad_(), loss((3,), (4,), variance=kind)
    value(pad, student, draw(1, 4)).mean().backward()
    grads = [student.grad, *(p.grad for p in pad.parameters())]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_maps_are_averaged_over_their_positions() -> None:
    s, t = draw(0, 4, 3, 3), draw(1, 4, 2, 2)
    got = value(loss((4, 3, 3), (4, 2, 2)), s, t)
    torch.testing.assert_close(got, value(loss(), s.mean((2, 3)), t.mean((2, 3))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_equal_and_constant_features_stay_finite(kind: str, fill: float) -> None:
    student = torch.full((6, 4), fill, requires_grad=True)
    values = value(loss(variance=kind), student, student.detach())
    values.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    student, teacher = (100 * draw(0, 4)).to(half), draw(1, 4).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(loss(), student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(loss(), student.float(), teacher.float()))


@pytest.mark.parametrize("options", [{"variance": "class"}, {"reduction": "max"}, {"eps": -1.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PrimeAware.Config(**options)
