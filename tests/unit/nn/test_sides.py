from __future__ import annotations

import pytest
import torch

from kdscale.api import Outputs
from kdscale.errors import ShapeError
from kdscale.nn.sides import logit_sides, map_sides, paired_shapes, pooled_alike


def test_both_sides_are_widened_and_only_the_teacher_is_detached() -> None:
    half = [torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    logits = [torch.randn(2, 5, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    student, teacher = (Outputs(z, [f]) for z, f in zip(logits, half, strict=True))
    for ours, theirs in [logit_sides("x", student, teacher), *map_sides("x", student, teacher)]:
        assert ours.dtype == theirs.dtype == torch.float32
        assert ours.requires_grad
        assert not theirs.requires_grad


def test_float64_stays() -> None:
    outputs = Outputs(torch.zeros(2, 5, dtype=torch.float64))
    assert logit_sides("x", outputs, outputs)[0].dtype == torch.float64


def test_a_pooled_feature_is_a_map_of_one_position() -> None:
    outputs = Outputs(torch.zeros(2, 5), [torch.ones(2, 3)])
    assert map_sides("x", outputs, outputs)[0][0].shape == (2, 3, 1, 1)
    assert paired_shapes("x", [(3,)], [(4, 2, 2)]) == [((3, 1, 1), (4, 2, 2))]


def test_what_does_not_fit_is_refused_by_the_terms_name() -> None:
    outputs = Outputs(torch.zeros(2, 5), [torch.ones(2, 3)])
    with pytest.raises(ShapeError, match=r"at: this term has no teacher.*name: at"):
        map_sides("at", outputs, None)
    with pytest.raises(ShapeError, match=r"at: .*student has 1 and the teacher 0.*taps"):
        map_sides("at", outputs, Outputs(torch.zeros(2, 5)))
    with pytest.raises(ShapeError, match="student has 0 and the teacher 0"):
        paired_shapes("at", [], [])
    with pytest.raises(ShapeError, match=r"at: takes maps .*not \[197, 192\]"):
        paired_shapes("at", [(197, 192)], [(197, 192)])
    with pytest.raises(ShapeError, match=r"\[197, 192\]; say how to read these tokens: \{module: NAME, as: map\}"):
        paired_shapes("at", [(8, 14, 14)], [(197, 192)])
    with pytest.raises(ShapeError, match=r"\[2, 8, 14, 14\]; tap another module"):
        paired_shapes("at", [(2, 8, 14, 14)], [(8, 14, 14)])


def test_the_larger_map_is_pooled_to_the_smaller_and_never_the_other() -> None:
    large = torch.arange(16.0).view(1, 1, 4, 4)
    small = torch.ones(1, 2, 2, 2)
    for how, want in (("avg", [[2.5, 4.5], [10.5, 12.5]]), ("max", [[5.0, 7.0], [13.0, 15.0]])):
        pooled, same = pooled_alike(large, small, how)
        assert pooled[0, 0].tolist() == want
        assert same is small
        assert pooled_alike(small, large, how)[1].tolist() == [[want]]


@pytest.mark.parametrize("size", [(2, 3), (4, 6), (3, 5)])
def test_the_fast_way_to_the_largest_gives_what_a_differentiable_one_gives(size: tuple[int, int]) -> None:
    large, small = torch.randn(2, 3, 8, 12).relu(), torch.zeros(2, 1, *size)
    large[0, 0, 0, 0] = torch.nan
    trained = large.clone().requires_grad_()
    got, want = (pooled_alike(side, small, "max")[0].detach() for side in (large, trained))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
