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
from kdscale.losses.fsp import FlowBetweenLayers, flow, order

LOGITS = torch.zeros(4, 3)
BATCH = Batch(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4), view=0)
SEEDS = st.integers(0, 999)
Maps = list[Tensor]


def loss(student: Maps, teacher: Maps, **options: Any) -> FlowBetweenLayers:
    shapes = [[tuple(f.shape[1:]) for f in maps] for maps in (student, teacher)]
    return FlowBetweenLayers(FlowBetweenLayers.Config(**options), Shapes(3, *shapes))


def value(student: Maps, teacher: Maps, **options: Any) -> Tensor:
    return loss(student, teacher, **options)(Outputs(LOGITS, student), Outputs(LOGITS, teacher), BATCH)


def maps(seed: int, *shapes: tuple[int, ...]) -> Maps:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(4, *shape))) for shape in shapes or ((3, 4, 4), (5, 4, 4))]


@pytest.mark.parity
@given(seed=SEEDS)
def test_equals_the_papers_formula(seed: int) -> None:
    student, teacher = maps(seed), maps(seed + 1000)
    matrices = [np.einsum("nihw,njhw->nij", *(f.numpy() for f in side)) / 16 for side in (student, teacher)]
    want = ((matrices[0] - matrices[1]) ** 2).sum((1, 2))
    np.testing.assert_allclose(value(student, teacher), want, rtol=1e-9)
    np.testing.assert_allclose(value(student, teacher, reduction="mean"), want / 15, rtol=1e-9)


@given(seed=SEEDS, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_flow_is_linear_in_either_map_and_blind_to_a_common_permutation(seed: int, a: float, b: float) -> None:
    first, second = maps(seed)
    torch.testing.assert_close(flow(a * first, b * second), a * b * flow(first, second))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(16))
    moved = [f.flatten(2)[..., order].view_as(f) for f in (first, second)]
    torch.testing.assert_close(flow(*moved), flow(first, second))


@given(seed=SEEDS, reduction=st.sampled_from(["sum", "mean", "columns"]))
def test_a_permutation_of_channels_on_both_sides_changes_nothing(seed: int, reduction: str) -> None:
    student, teacher = maps(seed), maps(seed + 1000)
    moved = [[f.flip(1) for f in side] for side in (student, teacher)]
    torch.testing.assert_close(value(*moved, reduction=reduction), value(student, teacher, reduction=reduction))


THREE = ((3, 4, 4), (5, 4, 4), (6, 2, 2))


@given(seed=SEEDS, shuffle=st.integers(0, 5))
def test_shuffled_it_is_the_loss_to_a_teacher_whose_channels_are_in_another_order(seed: int, shuffle: int) -> None:
    student, teacher = maps(seed, *THREE), maps(seed + 1000, *THREE)
    moved = [f[:, order(shuffle, tap, f.shape[1])] for tap, f in enumerate(teacher)]
    torch.testing.assert_close(value(student, teacher, shuffle=shuffle), value(student, moved))
    assert value(teacher, teacher, shuffle=shuffle).min() > 0
    torch.testing.assert_close(value(moved, teacher, shuffle=shuffle), torch.zeros(4, dtype=torch.float64))


def test_each_seed_and_each_tap_has_an_order_of_its_own_which_is_no_part_of_what_is_saved() -> None:
    orders = {(seed, tap): tuple(order(seed, tap, 16).tolist()) for seed in range(3) for tap in range(3)}
    assert all(sorted(one) == list(range(16)) for one in orders.values())
    assert len(set(orders.values())) == 9
    assert not loss(maps(0), maps(1), shuffle=1).state_dict()


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_the_larger_of_two_consecutive_maps_is_pooled(pool: str) -> None:
    large, small = maps(0, (3, 4, 4), (5, 2, 2))
    name = f"{pool}_pool2d"
    torch.testing.assert_close(flow(large, small, pool), flow(getattr(torch.nn.functional, name)(large, 2), small))


def test_pairs_of_consecutive_taps_add_up() -> None:
    shapes = ((3, 4, 4), (5, 4, 4), (6, 2, 2))
    student, teacher = maps(0, *shapes), maps(1, *shapes)
    parts = value(student[:2], teacher[:2]) + value(student[1:], teacher[1:])
    torch.testing.assert_close(value(student, teacher), parts)


@pytest.mark.parametrize("reduction", ["sum", "mean", "columns"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 1), (1, 1), (1e4, 1e4)])
def test_zero_equal_and_large_maps_stay_finite(ours: float, theirs: float, half: torch.dtype, reduction: str) -> None:
    student = [torch.full((4, 3, 4, 4), ours, dtype=half, requires_grad=True) for _ in range(2)]
    teacher = [torch.full((4, 3, 4, 4), theirs, dtype=half) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = value(student, teacher, reduction=reduction)
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert all(f.grad is not None and torch.isfinite(f.grad).all() for f in student)
    if ours == theirs:
        assert values.tolist() == [0.0] * 4


def test_products_that_fp16_cannot_hold_are_right() -> None:
    student, teacher = ([torch.full((4, 3, 4, 4), fill, dtype=torch.float16)] * 2 for fill in (1e4, 0.0))
    torch.testing.assert_close(value(student, teacher), torch.full((4,), 9 * 1e16))


def test_products_are_summed_in_float32_under_autocast() -> None:
    student, teacher = ([f.float() for f in maps(seed)] for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value(student, teacher)
    assert torch.equal(inside, value(student, teacher))


def test_other_channels_need_an_adapter_which_trains() -> None:
    student, teacher = maps(0, (2, 4, 4), (5, 4, 4)), maps(1)
    with pytest.raises(ShapeError, match=r"\[2, 5\].*\[3, 5\].*adapter"):
        loss(student, teacher)
    adapted = loss(student, teacher, adapter=True).double()
    adapted(Outputs(LOGITS, student), Outputs(LOGITS, teacher), BATCH).sum().backward()
    [weight] = adapted.parameters()
    assert weight.shape == (3, 2, 1, 1)
    assert weight.grad is not None


def test_a_single_tap_is_refused() -> None:
    with pytest.raises(ShapeError, match="two or more"):
        value(maps(0)[:1], maps(1)[:1])
