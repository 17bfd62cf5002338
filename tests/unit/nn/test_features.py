from __future__ import annotations

import pytest
import torch

from kdscale.api import Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.features import as_map, feature_pairs, shape_pairs

LOGITS = torch.zeros(2, 3)


def test_pairs_come_in_order_widened_and_without_the_teachers_gradient() -> None:
    own = [torch.randn(2, 4, dtype=torch.float16, requires_grad=True), torch.randn(2, 5, requires_grad=True)]
    taught = [torch.randn(2, 7, dtype=torch.bfloat16, requires_grad=True), torch.randn(2, 8, dtype=torch.float64)]
    pairs = feature_pairs("sp", Outputs(LOGITS, own), Outputs(LOGITS, taught))
    assert [(s.shape[1], t.shape[1]) for s, t in pairs] == [(4, 7), (5, 8)]
    assert [(s.dtype, t.dtype) for s, t in pairs] == [(torch.float32, torch.float32), (torch.float32, torch.float64)]
    assert all(s.requires_grad and not t.requires_grad for s, t in pairs)


def test_a_term_without_teacher_is_refused() -> None:
    with pytest.raises(ShapeError, match="sp: this term has no teacher"):
        feature_pairs("sp", Outputs(LOGITS, [LOGITS]), None)


def test_features_without_counterpart_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"2 features of the student and 1 of the teacher.*taps"):
        feature_pairs("sp", Outputs(LOGITS, [LOGITS] * 2), Outputs(LOGITS, [LOGITS]))
    with pytest.raises(ShapeError, match="0 features of the student and 1 of the teacher"):
        shape_pairs("vid", Shapes(3, [], [(4,)]))


def test_shapes_are_paired_in_order() -> None:
    assert shape_pairs("vid", Shapes(3, [(1,), (2, 3, 3)], [(4,), (5, 6, 6)])) == [((1,), (4,)), ((2, 3, 3), (5, 6, 6))]


def test_pooled_features_become_a_map_of_one_pixel_and_other_shapes_are_refused() -> None:
    assert as_map("vid", torch.zeros(2, 3)).shape == (2, 3, 1, 1)
    assert as_map("vid", torch.zeros(2, 3, 4, 5)).shape == (2, 3, 4, 5)
    with pytest.raises(ShapeError, match=r"vid: .*\[2, 3, 4\]"):
        as_map("vid", torch.zeros(2, 3, 4))
