from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.fitnet import Hints, hint_squares

LOGITS = torch.zeros(4, 3)
BATCH = Batch(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), torch.arange(4), view=0)

Shape = tuple[int, ...]


def loss(student: Shape, teacher: Shape, *, post_relu: bool = True, **options: Any) -> Hints:
    return Hints(Hints.Config(**options), Shapes(3, [student], [teacher], post_relu=post_relu))


def value(hints: Hints, student: Tensor, teacher: Tensor) -> Tensor:
    return hints(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


@given(seed=st.integers(0, 999), regressor=st.sampled_from(["conv_bn", "conv1x1"]))
def test_a_common_permutation_of_positions_changes_nothing_where_sizes_agree(seed: int, regressor: str) -> None:
    rng = np.random.default_rng(seed)
    sides, order = (
        [torch.from_numpy(rng.normal(size=(4, c, 3, 3))) for c in (2, 5)],
        torch.from_numpy(rng.permutation(9)),
    )
    hints = loss((2, 3, 3), (5, 3, 3), regressor=regressor).double()
    moved = [side.flatten(2)[..., order].view_as(side) for side in sides]
    torch.testing.assert_close(value(hints, *moved), value(hints, *sides))


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_the_papers_form_is_half_the_squared_distance(seed: int) -> None:
    regressed, hint = np.random.default_rng(seed).normal(size=(2, 4, 3, 5, 5))
    half = hint_squares(torch.from_numpy(regressed), torch.from_numpy(hint), "paper")
    want = 0.5 * np.linalg.norm((regressed - hint).reshape(4, -1), axis=1) ** 2
    np.testing.assert_allclose(half, want, rtol=1e-9)
    mean = hint_squares(torch.from_numpy(regressed), torch.from_numpy(hint), "mean")
    np.testing.assert_allclose(mean, want * 2 / 75, rtol=1e-9)


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((4, 6, 6), (7, 6, 6), (1, 1)),
        ((4, 8, 8), (7, 4, 4), (3, 3)),
        ((4, 4, 4), (7, 8, 8), (4, 4)),
        ((4, 9, 7), (7, 4, 5), (6, 3)),
        ((4,), (7,), (1, 1)),
    ],
)
def test_the_regressor_bridges_sizes_as_the_benchmark_does(student: Shape, teacher: Shape, kernel: Shape) -> None:
    hints = loss(student, teacher)
    assert hints.get_submodule("regressors.0.conv").kernel_size == kernel
    ours = torch.randn(4, *student, requires_grad=True)
    value(hints, ours, torch.randn(4, *teacher)).sum().backward()
    assert ours.grad is not None
    assert all(p.grad is not None for p in hints.parameters())


def test_a_student_that_agrees_through_an_identity_has_no_loss() -> None:
    hints = loss((3, 5, 5), (3, 5, 5), regressor="conv1x1")
    nn.init.dirac_(hints.get_submodule("regressors.0").weight)
    features = torch.randn(4, 3, 5, 5)
    assert value(hints, features, features).tolist() == [0.0] * 4


@pytest.mark.parametrize(("post_relu", "relu", "ends"), [(True, None, 1), (False, None, 0), (True, False, 0)])
def test_a_relu_ends_the_regressor_only_where_the_teachers_taps_end_so(
    post_relu: bool, relu: bool | None, ends: int
) -> None:
    hints = loss((3, 5, 5), (4, 5, 5), post_relu=post_relu, relu=relu)
    assert sum(isinstance(m, nn.ReLU) for m in hints.modules()) == ends


def test_layers_add_up() -> None:
    shapes = [(3, 5, 5), (4, 2, 2)]
    hints = Hints(Hints.Config(), Shapes(3, shapes, shapes))
    ours, theirs = ([torch.randn(4, *shape) for shape in shapes] for _ in range(2))
    both = hints(Outputs(LOGITS, ours), Outputs(LOGITS, theirs), BATCH)
    alone = [hint_squares(r(a), b, "mean") for r, a, b in zip(hints.regressors, ours, theirs, strict=True)]
    torch.testing.assert_close(both, alone[0] + alone[1])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_constant_features_stay_finite_in_half_precision(fill: float, half: torch.dtype) -> None:
    ours = torch.full((4, 3, 5, 5), fill, dtype=half, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = value(loss((3, 5, 5), (4, 5, 5)), ours, torch.full((4, 4, 5, 5), -fill, dtype=half))
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert ours.grad is not None
    assert torch.isfinite(ours.grad).all()


def test_the_regressor_is_computed_in_float32_under_autocast() -> None:
    hints, ours, theirs = loss((3, 5, 5), (4, 5, 5)), torch.randn(4, 3, 5, 5), torch.randn(4, 4, 5, 5)
    plain = value(hints, ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(value(hints, ours, theirs), plain)


def test_sizes_that_nothing_bridges_are_refused() -> None:
    with pytest.raises(ShapeError, match="5x5 to the teacher's 7x7"):
        loss((3, 5, 5), (4, 7, 7))
    with pytest.raises(ShapeError, match="conv1x1 keeps"):
        loss((3, 4, 4), (4, 2, 2), regressor="conv1x1")


def test_a_single_value_a_channel_is_refused_in_training_only() -> None:
    hints, one = loss((3,), (4,)), Outputs(LOGITS[:1], [torch.ones(1, 3)])
    teacher = Outputs(LOGITS[:1], [torch.ones(1, 4)])
    with pytest.raises(ShapeError, match=r"fitnet.*one value a channel.*batch_size"):
        hints(one, teacher, BATCH.first(1))
    assert hints.eval()(one, teacher, BATCH.first(1)).shape == (1,)


@given(seed=st.integers(0, 999))
def test_without_a_regressor_features_are_compared_as_they_are(seed: int) -> None:
    ours, theirs = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 4, 3, 5, 5)))
    hints = loss((3, 5, 5), (3, 5, 5), regressor="none")
    assert [*hints.parameters()] == []
    torch.testing.assert_close(value(hints, ours, theirs), (ours - theirs).square().mean((1, 2, 3)))
    assert value(hints, theirs, theirs).abs().max() == 0


@pytest.mark.parametrize("teacher", [(4, 5, 5), (3, 4, 4)])
def test_without_a_regressor_shapes_agree(teacher: Shape) -> None:
    with pytest.raises(ShapeError, match=r"regressor none .*\[3, 5, 5\].*conv_bn"):
        loss((3, 5, 5), teacher, regressor="none")
