"""Rounding is told from another answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdscale.cache.layout import Layout
from kdscale.cache.records import encode
from kdscale.jobs.cache_difference import Difference

ROWS = 64
LAYOUTS = [
    Layout(20, "dense"),
    Layout(20, "dense_fp32"),
    Layout(20, "topk", k=4, temperatures=(1.0, 4.0)),
    Layout(20, "topk", k=4, residual="sampled", draws=8, temperatures=(1.0, 4.0), mixing=True),
]


def records(layout: Layout, shift: float, *, of: int | None = None) -> NDArray[np.uint8]:
    """Records of made-up logits, those of class 0 raised by a shift (of one row, or of all)."""
    logits = 3 * torch.randn(ROWS, layout.classes, generator=torch.Generator().manual_seed(3))
    logits[:, 1] = 20.0  # the largest, so that gaps move and the row's largest does not
    rows = slice(None) if of is None else slice(of, of + 1)
    logits[rows, 0] = 15.0
    logits[rows, 0] += shift
    numbers = torch.arange(ROWS)
    labels = numbers % layout.classes
    partners = labels.flip(0) if layout.mixing else None
    return encode(logits, layout, labels=labels, rows=numbers, view=0, labels_b=partners).numpy()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equal_records_do_not_differ(layout: Layout) -> None:
    found = Difference(layout)
    found.add(records(layout, 0), records(layout, 0))
    assert (found.records, found.equal, found.beyond, found.logits, found.wrong) == (ROWS, ROWS, 0, 0.0, False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_other_sums_round_to_is_explained(layout: Layout) -> None:
    found = Difference(layout)
    found.add(records(layout, 0), records(layout, 2e-6))
    assert (found.beyond, found.wrong) == (0, False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_another_answer_is_not(layout: Layout) -> None:
    found = Difference(layout)
    found.add(records(layout, 0, of=7), records(layout, 0.1, of=7))
    assert (found.beyond, found.equal, found.wrong) == (1, ROWS - 1, True)
    assert found.logits == pytest.approx(0.1, rel=0.05)


def test_probabilities_are_those_of_each_temperature() -> None:
    layout = LAYOUTS[2]
    found = Difference(layout)
    found.add(records(layout, 0), records(layout, 1.0))
    assert found.probabilities[4.0] > 3 * found.probabilities[1.0] > 0


def compared(layout: Layout, old: list[float], new: list[float]) -> Difference:
    """The difference of two single records; the label is class 0."""
    zero, found = torch.zeros(1, dtype=torch.int64), Difference(layout)
    there, now = (encode(torch.tensor([given]), layout, labels=zero, rows=zero, view=0).numpy() for given in (old, new))
    found.add(there, now)
    return found


def test_classes_that_change_places_are_compared_class_by_class() -> None:
    found = compared(Layout(4, "topk", k=3), [5.0, 3.0, 2.0, 0.0], [5.0, 2.0, 3.0, 0.0])
    assert (found.indices, found.beyond, found.logits) == (2, 1, 1.0)


def test_another_kept_class_of_the_same_size_is_another_answer() -> None:
    found = compared(Layout(4, "topk", k=1), [5.0, 3.0, 2.0, 0.0], [3.0, 5.0, 2.0, 0.0])
    assert (found.indices, found.wrong) == (1, True)
    found = compared(Layout(4, "topk", k=2), [5.0, 3.0, 2.0, 0.0], [5.0, 2.0, 3.0, 0.0])
    assert (found.indices, found.beyond, found.wrong) == (1, 0, True)


def test_a_class_that_only_one_keeps_differs_at_least_by_what_it_lies_above_the_others_last() -> None:
    found = compared(Layout(4, "topk", k=2), [5.0, 3.0, 2.0, 0.0], [5.0, 1.0, 4.0, 0.0])
    assert found.logits == 1.0
