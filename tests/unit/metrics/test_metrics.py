"""The metrics that come along, against scikit-learn's of the same names."""

from __future__ import annotations

import warnings

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor

from kdscale import plugins

REFERENCE = {
    "macro_f1": lambda labels, answers: f1_score(labels, answers, average="macro"),
    "balanced_accuracy": balanced_accuracy_score,
}


def made_up(seed: int, absent: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits (300, 7) that are right for the most part, and labels of which some classes are absent."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor([c for c in range(7) if c not in absent])
    labels = known[(torch.rand(300, generator=generator) ** 2 * len(known)).long()]
    logits = torch.randn(300, 7, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 7)
    return logits, labels


def test_every_metric_has_a_reference_here() -> None:
    assert set(plugins.available("metrics")) == set(REFERENCE)


@pytest.mark.parametrize("name", sorted(REFERENCE))
@pytest.mark.parametrize("absent", [(), (0,), (2, 6)])
def test_it_is_what_scikit_learn_says(name: str, absent: tuple[int, ...]) -> None:
    logits, labels = made_up(len(absent), absent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are answered and never meant
        expected = REFERENCE[name](labels, logits.argmax(1))
    assert plugins.load("metrics", name)(logits, labels) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected < 1


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_it_is_1_where_all_is_right_and_does_not_depend_on_the_order(name: str) -> None:
    logits, labels = made_up(3)
    metric = plugins.load("metrics", name)
    assert metric(torch.nn.functional.one_hot(labels, 7).float(), labels) == 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert metric(logits[order], labels[order]) == metric(logits, labels)
