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
from kdscale.losses.at import AttentionTransfer, attention

LOGITS = torch.zeros(4, 3)
BATCH = Batch(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4), view=0)
SEEDS = st.integers(0, 999)
MODES = st.sampled_from(["code", "paper"])


def value(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    shapes = Shapes(3, [tuple(student.shape[1:])], [tuple(teacher.shape[1:])])
    loss = AttentionTransfer(AttentionTransfer.Config(**options), shapes)
    return loss(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


def maps(seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(4, 3, 5, 5))), torch.from_numpy(rng.normal(size=(4, 6, 5, 5)))


@pytest.mark.parity
@given(seed=SEEDS, p=st.sampled_from([1, 2, 3, 4]), mode=MODES)
def test_equals_the_formula(seed: int, p: int, mode: str) -> None:
    student, teacher = maps(seed)
    qs = [(np.abs(f.numpy()) ** p).sum(1).reshape(4, -1) for f in (student, teacher)]
    gap = np.subtract(*(q / np.linalg.norm(q, axis=1, keepdims=True) for q in qs))
    want = (gap**2).mean(1) if mode == "code" else np.linalg.norm(gap, axis=1)
    np.testing.assert_allclose(value(student, teacher, p=p, mode=mode), want, rtol=1e-9)


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), mode=MODES)
def test_only_where_it_is_active_counts(seed: int, scale: float, mode: str) -> None:
    student, teacher = maps(seed)
    want = value(student, teacher, mode=mode)
    torch.testing.assert_close(value(scale * student, teacher, mode=mode), want)
    torch.testing.assert_close(value(student.flip(1), -teacher, mode=mode), want)


@given(seed=SEEDS, times=st.integers(2, 4), mode=MODES)
def test_how_many_channels_say_the_same_does_not_count(seed: int, times: int, mode: str) -> None:
    student, teacher = maps(seed)
    repeated = value(student.repeat(1, times, 1, 1), teacher, mode=mode)
    torch.testing.assert_close(repeated, value(student, teacher, mode=mode))


@given(seed=SEEDS, mode=MODES)
def test_a_common_permutation_of_positions_changes_nothing(seed: int, mode: str) -> None:
    student, teacher = maps(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(25))
    moved = [f.flatten(2)[..., order].view_as(f) for f in (student, teacher)]
    torch.testing.assert_close(value(*moved, mode=mode), value(student, teacher, mode=mode))


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_the_larger_map_is_pooled_before_the_power(mode: str) -> None:
    small, large = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 4, 4)
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(value(small, large, mode=mode), value(small, pooled, mode=mode))
    torch.testing.assert_close(value(large, small, mode=mode), value(pooled, small, mode=mode))


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 1), (1, 0), (1, 1), (6e4, 6e4), (6e4, 0)])
def test_zero_equal_and_large_maps_stay_finite(ours: float, theirs: float, half: torch.dtype, mode: str) -> None:
    student = torch.full((4, 3, 5, 5), ours, dtype=half, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = value(student, torch.full((4, 6, 5, 5), theirs, dtype=half), mode=mode, p=4)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    if bool(ours) == bool(theirs):
        torch.testing.assert_close(values, torch.zeros(4))


def test_the_scale_before_the_power_leaves_the_gradient_alone() -> None:
    features = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (features,))


def test_features_without_space_are_refused() -> None:
    with pytest.raises(ShapeError, match="one position"):
        value(torch.randn(4, 8), torch.randn(4, 8))
