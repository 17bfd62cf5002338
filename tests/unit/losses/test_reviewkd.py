from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.reviewkd import KnowledgeReview, context_distance

BATCH = Batch(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), torch.arange(5), view=0)
STUDENT: list[tuple[int, ...]] = [(3, 8, 8), (4, 4, 4), (6,)]
TEACHER: list[tuple[int, ...]] = [(5, 8, 8), (7, 4, 4), (9,)]


def loss(student: Any = STUDENT, teacher: Any = TEACHER, **options: Any) -> KnowledgeReview:
    torch.manual_seed(0)
    return KnowledgeReview(KnowledgeReview.Config(**options), Shapes(2, student, teacher))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed))


def answers(seed: int, shapes: list[tuple[int, ...]]) -> Outputs:
    return Outputs(torch.zeros(5, 2), [draw(seed + i, *shape).requires_grad_() for i, shape in enumerate(shapes)])


@given(seed=st.integers(0, 999))
def test_the_context_loss_equals_its_formula(seed: int) -> None:
    s, t = draw(seed, 3, 8, 8), draw(seed + 1, 3, 8, 8)
    want = functional.mse_loss(s, t)
    for size, weight in ((4, 0.5), (2, 0.25), (1, 0.125)):
        want = want + weight * functional.mse_loss(*(functional.adaptive_avg_pool2d(f, size) for f in (s, t)))
    torch.testing.assert_close(context_distance(s, t, (4, 2, 1)).mean(), want / 1.875)


@pytest.mark.parametrize(("size", "weights"), [(3, [1, 0.5, 0.25]), (4, [1, 0.5, 0.25]), (2, [1, 0.5]), (1, [1])])
def test_sizes_that_are_not_smaller_are_left_out_and_halve_nothing(size: int, weights: list[float]) -> None:
    s, nothing = draw(0, 3, size, size), torch.zeros(5, 3, size, size)
    scales = [s, *(functional.adaptive_avg_pool2d(s, p) for p in (4, 2, 1) if p < size)]
    want = sum(w * f.square().flatten(1).mean(1) for w, f in zip(weights, scales, strict=True)) / sum(weights)
    torch.testing.assert_close(context_distance(s, nothing, (4, 2, 1)), want)


@given(seed=st.integers(0, 999), shift=st.floats(-5, 5))
def test_shifting_both_sides_changes_nothing(seed: int, shift: float) -> None:
    s, t = draw(seed, 3, 4, 4).double(), draw(seed + 1, 3, 4, 4).double()
    torch.testing.assert_close(context_distance(s + shift, t + shift, (2, 1)), context_distance(s, t, (2, 1)))


def test_equal_features_have_no_loss_and_no_gradient() -> None:
    s = draw(0, 3, 8, 8).requires_grad_()
    values = context_distance(s, s.detach(), (4, 2, 1))
    values.sum().backward()
    assert s.grad is not None
    assert values.abs().max() == 0
    assert s.grad.abs().max() == 0


def test_a_level_hears_of_deeper_levels_only() -> None:
    review, student = loss(), answers(0, STUDENT)
    maps = [f if f.dim() == 4 else f[:, :, None, None] for f in student.features]
    fused = review.fuse(maps, [(8, 8), (4, 4), (1, 1)])
    assert [tuple(f.shape[1:]) for f in fused] == [(5, 8, 8), (7, 4, 4), (9, 1, 1)]
    for level, answer in enumerate(fused):
        grads = torch.autograd.grad(answer.square().sum(), student.features, retain_graph=True, allow_unused=True)
        assert [g is not None for g in grads] == [other >= level for other in range(3)]


def test_every_part_trains() -> None:
    review, student = loss(), answers(0, STUDENT)
    review(student, answers(9, TEACHER), BATCH).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in review.parameters())
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in student.features)


def test_fused_maps_have_at_most_the_last_levels_channels() -> None:
    for most, channels in {512: 6, 2: 2}.items():
        entering = [m for name, m in loss(most_channels=most).named_modules() if name.endswith("enter.0")]
        assert [m.out_channels for m in entering if isinstance(m, nn.Conv2d)] == [channels] * 3


def test_the_teachers_maps_may_have_another_size_and_need_not_be_square() -> None:
    teacher: list[tuple[int, ...]] = [(5, 6, 10), (7, 4, 4), (9,)]
    values = loss(teacher=teacher)(answers(0, STUDENT), answers(9, teacher), BATCH)
    assert values.shape == (5,)
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_constant_features_stay_finite(fill: float) -> None:
    features = [torch.full((5, *shape), fill, requires_grad=True) for shape in STUDENT]
    values = loss()(Outputs(torch.zeros(5, 2), features), answers(9, TEACHER), BATCH)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert all(f.grad is not None and torch.isfinite(f.grad).all() for f in features)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    """But that its own network answers in bf16, where the student does."""
    student, teacher = ([f.detach().to(half) for f in answers(s, x).features] for s, x in ((0, STUDENT), (9, TEACHER)))
    nothing = torch.zeros(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss()(Outputs(nothing, student), Outputs(nothing, teacher), BATCH)
    wide = [Outputs(nothing, [f.float() for f in features]) for features in (student, teacher)]
    assert got.dtype == torch.float32
    close = {"rtol": 0.02, "atol": 0.0} if half == torch.bfloat16 else {}
    torch.testing.assert_close(got, loss()(*wide, BATCH), **close)


def test_unpaired_taps_are_refused() -> None:
    with pytest.raises(ShapeError, match="taps"):
        loss(teacher=TEACHER[:2])


@pytest.mark.parametrize("options", [{"most_channels": 0}, {"pool_sizes": "all"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        KnowledgeReview.Config(**options)
