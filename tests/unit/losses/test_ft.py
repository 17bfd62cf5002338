from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.ft import Distance, FactorTransfer, factor_distance

BATCH = Batch(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), torch.arange(5), view=0)
STUDENT, TEACHER = (3, 4, 4), (6, 4, 4)
DISTANCES: list[Distance] = ["l1", "l1_sum", "l2", "at_like"]


def loss(teacher: tuple[int, ...] = TEACHER, **options: Any) -> FactorTransfer:
    torch.manual_seed(0)
    return FactorTransfer(FactorTransfer.Config(**options), Shapes(2, [STUDENT], [teacher]))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed))


def answers(feature: Tensor) -> Outputs:
    return Outputs(torch.zeros(5, 2), [feature])


def value(ft: FactorTransfer, student: Tensor, teacher: Tensor) -> Tensor:
    result: Tensor = ft(answers(student), answers(teacher), BATCH)
    return result


@given(seed=st.integers(0, 999), distance=st.sampled_from(DISTANCES))
def test_equals_the_formula(seed: int, distance: Distance) -> None:
    s, t = draw(seed, 3, 4, 4), draw(seed + 1, 3, 4, 4)
    a, b = ((f.square().mean(1) if distance == "at_like" else f).flatten(1) for f in (s, t))
    gap = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
    want = {"l1": gap.abs().mean(1), "l1_sum": gap.abs().sum(1), "l2": gap.norm(dim=1), "at_like": gap.abs().mean(1)}
    torch.testing.assert_close(factor_distance(s, t, distance), want[distance])


@given(
    seed=st.integers(0, 999), scale=st.sampled_from([1e-4, 0.01, 0.3, 7.0, 100.0]), distance=st.sampled_from(DISTANCES)
)
def test_a_positive_scale_of_either_factor_changes_nothing(seed: int, scale: float, distance: Distance) -> None:
    s, t = draw(seed, 3, 4, 4), draw(seed + 1, 3, 4, 4)
    plain = factor_distance(s, t, distance)
    torch.testing.assert_close(factor_distance(scale * s, t, distance), plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(factor_distance(s, scale * t, distance), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_zero_identical_and_large_factors_stay_finite(distance: Distance, fill: float) -> None:
    student = torch.full((5, 3, 4, 4), fill, requires_grad=True)
    values = factor_distance(student, student.detach(), distance)
    values.sum().backward()
    assert values.abs().max() < 1e-6
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_the_student_learns_the_factor_and_the_paraphraser_the_reconstruction_only() -> None:
    student, teacher = draw(0, *STUDENT).requires_grad_(), draw(1, *TEACHER)

    def grads(ft: FactorTransfer) -> list[Tensor | None]:
        student.grad = None
        value(ft, student, teacher).mean().backward()
        return [student.grad, *(p.grad for p in ft.translators.parameters())]

    alone, both = loss(reconstruction=0), loss(reconstruction=1.0)
    torch.testing.assert_close(grads(alone), grads(both))
    assert all(p.grad is None for p in alone.paraphrasers.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in both.paraphrasers.parameters())


@pytest.mark.parametrize("reconstruct", ["mse", "l1"])
def test_the_paraphraser_learns_to_restore_the_teachers_map(reconstruct: str) -> None:
    ft, teacher = loss(rate=1.0, reconstruction=1.0, reconstruct=reconstruct), draw(1, *TEACHER)
    optimizer = torch.optim.Adam(ft.paraphrasers.parameters(), lr=3e-3)

    def restored() -> Tensor:
        gap: Tensor = ft.paraphrasers[0](teacher)[1] - teacher
        return gap

    before = float(restored().detach().var())
    for _ in range(60):
        optimizer.zero_grad()
        value(ft, draw(0, *STUDENT), teacher).mean().backward()
        optimizer.step()
    assert float(restored().detach().var()) < 0.8 * before


def test_the_rate_decides_the_factors_channels() -> None:
    for rate, channels in {0.5: 3, 0.75: 4, 0.01: 1, 2.0: 12}.items():
        assert loss(rate=rate).paraphrasers[0](draw(1, *TEACHER))[0].shape == (5, channels, 4, 4)


def test_maps_of_other_sizes_meet_at_the_smaller() -> None:
    s, t = draw(0, 3, 4, 4), draw(1, 3, 8, 2)
    want = factor_distance(nn.functional.avg_pool2d(s, (1, 2)), nn.functional.avg_pool2d(t, (2, 1)), "l1")
    torch.testing.assert_close(factor_distance(s, t, "l1"), want)
    assert value(loss((6, 8, 2)), draw(0, *STUDENT), draw(1, 6, 8, 2)).shape == (5,)


def test_the_translator_has_batch_norm_on_request_only() -> None:
    assert not [m for m in loss().modules() if isinstance(m, nn.BatchNorm2d)]
    ft = loss(translator_bn=True)
    assert len([m for m in ft.translators.modules() if isinstance(m, nn.BatchNorm2d)]) == 3
    assert not [m for m in ft.paraphrasers.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    """But that its own network answers in bf16, where the student does."""
    student, teacher = (100 * draw(0, *STUDENT)).to(half), (100 * draw(1, *TEACHER)).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(loss(), student, teacher)
    assert got.dtype == torch.float32
    close = {"rtol": 0.02, "atol": 0.0} if half == torch.bfloat16 else {}
    torch.testing.assert_close(got, value(loss(), student.float(), teacher.float()), **close)


def test_unpaired_taps_are_refused() -> None:
    with pytest.raises(ShapeError, match="taps"):
        FactorTransfer(FactorTransfer.Config(), Shapes(2, [STUDENT], []))


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"distance": "cosine"}, {"reconstruction": -1.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FactorTransfer.Config(**options)


@given(seed=st.integers(0, 999))
def test_without_a_distance_the_reconstruction_is_left(seed: int) -> None:
    student, teacher = draw(seed, *STUDENT).requires_grad_(), draw(seed + 1, *TEACHER)
    alone, both = loss(distance="none", reconstruction=2.0), loss(reconstruction=2.0)
    both.paraphrasers.load_state_dict(alone.paraphrasers.state_dict())
    values = value(alone, student, teacher)
    gap = alone.paraphrasers[0](teacher)[1] - teacher
    torch.testing.assert_close(values, 2 * gap.square().flatten(1).mean(1))
    factor = both.paraphrasers[0](teacher)[0]
    own = factor_distance(both.translators[0](student), factor, "l1")
    torch.testing.assert_close(value(both, student, teacher), values + own)
    assert not list(alone.translators.parameters())


def test_no_distance_and_no_reconstruction_is_nothing() -> None:
    with pytest.raises(ValueError, match=r"distance: none leaves the reconstruction"):
        FactorTransfer.Config(distance="none", reconstruction=0)
