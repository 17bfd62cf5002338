from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.modifiers.misclassified import Misclassified

SHAPES = Shapes(classes=4)


def batch(labels: list[int]) -> Batch:
    count = len(labels)
    return Batch(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.tensor(labels), torch.arange(count), view=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
def test_picks_what_the_teacher_gets_wrong(pairs: list[tuple[int, int]]) -> None:
    labels, said = map(list, zip(*pairs, strict=True))
    teacher = Outputs(torch.eye(4)[torch.tensor(said)])
    picked = Misclassified(Misclassified.Config(), SHAPES).mask(teacher, batch(labels))
    assert picked.tolist() == [label != answer for label, answer in pairs]


def test_a_record_that_knows_the_top_class_is_believed() -> None:
    completed = Outputs(torch.eye(4)[torch.tensor([0, 1])], top=torch.tensor([3, 1]))
    assert Misclassified(Misclassified.Config(), SHAPES).mask(completed, batch([0, 1])).tolist() == [True, False]


def test_what_is_divided_by_is_an_option() -> None:
    assert Misclassified(Misclassified.Config(), SHAPES).normalise == "selected"
    assert Misclassified(Misclassified.Config(normalise="batch"), SHAPES).normalise == "batch"


def test_without_a_teacher_it_is_refused() -> None:
    with pytest.raises(ShapeError, match="teacher: STAGE"):
        Misclassified(Misclassified.Config(), SHAPES).mask(None, batch([0]))
