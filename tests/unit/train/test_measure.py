"""What a metric is given, and what it may answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale.errors import StageError
from kdscale.train.measure import Metric, measured_by

LOGITS, LABELS = torch.eye(4), torch.arange(4)
WHAT = "stages.s.eval.metrics: birds:f on test"


def answering(value: Any) -> Metric:
    return lambda logits, labels: value


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (0.5, 0.5), (1, 1.0), (torch.tensor([0.25]), 0.25), (np.float32(0.5), 0.5),
        ({"a": 1, "b": torch.tensor(2.0)}, {"a": 1.0, "b": 2.0}),
    ],
    ids=["float", "int", "tensor", "numpy", "dict"],
)  # fmt: skip
def test_a_number_or_numbers_by_name(answer: Any, expected: Any) -> None:
    assert measured_by(answering(answer), LOGITS, LABELS, WHAT) == expected


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (float("nan"), "gives nan, not a finite number"),
        ({"a": float("inf")}, ", a, gives inf, not a finite number"),
        (None, "gives NoneType, not a number"),
        (True, "gives bool, not a number"),
        (torch.ones(3), "gives Tensor, not a number"),
        ({}, "gives an empty mapping"),
    ],
    ids=["nan", "inf", "none", "bool", "tensor", "empty"],
)
def test_anything_else_names_the_metric(answer: Any, said: str) -> None:
    with pytest.raises(StageError, match=f"birds:f on test.*{said}.*the network is trained and stays"):
        measured_by(answering(answer), LOGITS, LABELS, WHAT)


def test_an_exception_is_told_with_its_place() -> None:
    def divides(logits: Tensor, labels: Tensor) -> float:
        return 1 / 0

    with pytest.raises(StageError, match=r"birds:f on test raises ZeroDivisionError: .*\(test_measure\.py:\d+\)"):
        measured_by(divides, LOGITS, LABELS, WHAT)


def test_it_may_spoil_what_it_is_given() -> None:
    def spoils(logits: Tensor, labels: Tensor) -> float:
        assert not torch.is_grad_enabled()
        logits.zero_()
        labels.zero_()
        return 0.0

    measured_by(spoils, LOGITS, LABELS, WHAT)
    assert torch.equal(LOGITS, torch.eye(4))
    assert torch.equal(LABELS, torch.arange(4))
