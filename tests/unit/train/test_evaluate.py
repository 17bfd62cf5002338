"""Figures against NumPy and scikit-learn, computed at once over all samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn

from kdscale.api import Batch, Outputs
from kdscale.teachers.ensemble import Ensemble
from kdscale.train.evaluate import ECE_BINS, Evaluator, Figures, latency_ms
from tests.unit.train.made_up import Oracle

CPU = torch.device("cpu")
ROWS, CLASSES = 103, 7
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((ROWS, CLASSES))).astype(np.float32)
TAUGHT = {name: (2 * RNG.standard_normal((ROWS, CLASSES))).astype(np.float32) for name in ("big", "small")}
LABELS = RNG.integers(0, CLASSES - 1, ROWS)  # the last class never comes


class LooksUp(nn.Module):
    """Answers by the row number, which the images carry in their pixels."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits)

    def forward(self, images: Tensor) -> Outputs:
        assert not self.training
        assert not torch.is_grad_enabled()
        return Outputs(self.logits[images[:, 0, 0, 0].long()])


class Split:
    """All rows in batches of ten, the last one smaller."""

    def __init__(self, labels: np.ndarray = LABELS) -> None:
        self.labels = torch.from_numpy(labels)

    def __iter__(self) -> Iterator[Batch]:
        for rows in torch.arange(ROWS).split(10):
            images = rows.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
            yield Batch(images, self.labels[rows], rows, view=0)


def figures(logits: np.ndarray = LOGITS) -> Figures:
    teachers = [Oracle(name, torch.from_numpy(taught)) for name, taught in TAUGHT.items()]
    found = Evaluator(Split(), teachers, logits.shape[1], CPU, ROWS)(LooksUp(logits))
    assert found is not None
    return found


def expected_ece(probabilities: np.ndarray) -> float:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == LABELS
    edges = np.linspace(0, 1, ECE_BINS + 1)
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


class Differentiable(Oracle):
    """Answers with a graph to its pixels, as a teacher does whose gradients a term compares."""

    def __call__(self, batch: Batch) -> Outputs:
        with torch.enable_grad():
            return Outputs(super().__call__(batch).logits.clone().requires_grad_() * 1.0)


def test_what_is_kept_of_teachers_answers_holds_no_graph() -> None:
    evaluator = Evaluator(Split(), [Differentiable("big", torch.from_numpy(TAUGHT["big"]))], CLASSES, CPU, ROWS)
    evaluator(LooksUp(LOGITS))

    assert evaluator._answers
    assert not any(logits.requires_grad for kept in evaluator._answers for logits in kept.values())


def test_accuracy_and_calibration() -> None:
    found = figures()
    q = np.exp(log_softmax(LOGITS.astype(np.float64), axis=1))
    classes = np.arange(CLASSES)
    assert found.samples == ROWS
    assert found.top1 == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=1, labels=classes), abs=1e-12)
    assert found.top5 == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5, labels=classes), abs=1e-12)
    assert found.nll == pytest.approx(log_loss(LABELS, q, labels=classes), rel=1e-5)
    assert found.ece == pytest.approx(expected_ece(q), rel=1e-5)


def test_each_class_by_itself() -> None:
    guess = LOGITS.argmax(1)
    expected = [(guess[label == LABELS] == label).mean() for label in range(CLASSES - 1)]
    assert figures().per_class[:-1] == pytest.approx(expected)
    assert math.isnan(figures().per_class[-1])


def test_fidelity_to_each_teacher() -> None:
    found, log_q = figures(), log_softmax(LOGITS.astype(np.float64), axis=1)
    for name, taught in TAUGHT.items():
        log_p = log_softmax(taught.astype(np.float64), axis=1)
        assert found.agreement[name] == pytest.approx((log_p.argmax(1) == LOGITS.argmax(1)).mean())
        assert found.teacher_top1[name] == pytest.approx((log_p.argmax(1) == LABELS).mean())
        assert found.kl[name] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(1).mean(), rel=1e-5)
    assert figures(TAUGHT["big"]).agreement["big"] == 1.0
    assert figures(TAUGHT["big"]).kl["big"] == pytest.approx(0.0, abs=1e-12)


def test_fidelity_to_an_ensemble_that_stands_before_its_members() -> None:
    oracles = [Oracle(name, torch.from_numpy(taught)) for name, taught in TAUGHT.items()]
    both = Ensemble("both", {"big": 0.25, "small": 0.75}, "probabilities")
    found = Evaluator(Split(), [both, *oracles], CLASSES, CPU, ROWS)(LooksUp(LOGITS))
    assert found is not None
    p = 0.25 * softmax(TAUGHT["big"], axis=1) + 0.75 * softmax(TAUGHT["small"], axis=1)
    assert found.agreement["both"] == pytest.approx((p.argmax(1) == LOGITS.argmax(1)).mean())
    assert found.teacher_top1["both"] == pytest.approx((p.argmax(1) == LABELS).mean())
    assert found.kl["both"] == pytest.approx((p * (np.log(p) - log_softmax(LOGITS, axis=1))).sum(1).mean(), rel=1e-4)
    assert found.metrics("val")["val/agreement"] == found.agreement["both"]
    assert {name: found.agreement[name] for name in TAUGHT} == figures().agreement


def test_metrics_are_flat_and_name_the_split() -> None:
    found = figures()
    flat = found.metrics("val")
    assert flat["val/top1"] == found.top1
    assert flat["val/agreement"] == found.agreement["big"]
    assert all(math.isfinite(value) for value in flat.values())


def test_fewer_than_five_classes() -> None:
    found = Evaluator(Split(LABELS % 3), [], 3, CPU, ROWS)(LooksUp(LOGITS[:, :3]))
    assert found is not None
    assert found.top5 == 1.0
    assert found.agreement == {}
    assert "val/agreement" not in found.metrics("val")


def test_an_answer_sure_of_itself_stays_finite() -> None:
    sure = np.where(np.eye(CLASSES)[LABELS] > 0, 1e4, -1e4).astype(np.float32)
    found = figures(sure)
    assert (found.top1, found.ece) == (1.0, pytest.approx(0.0, abs=1e-6))
    assert math.isfinite(found.kl["big"])


def test_teachers_are_asked_once_and_the_mode_comes_back() -> None:
    teacher, network = Oracle("big", torch.from_numpy(TAUGHT["big"])), LooksUp(LOGITS)
    evaluator = Evaluator(Split(), [teacher], CLASSES, CPU, ROWS)
    first = evaluator(network.train())
    asked = teacher.asked
    assert network.training
    assert str(evaluator(network.eval())) == str(first)  # as text, where nan equals itself
    assert not network.training
    assert teacher.asked == asked == 11


def test_what_was_frozen_in_eval_mode_is_so_after_an_evaluation() -> None:
    network = LooksUp(LOGITS)
    network.frozen = nn.BatchNorm1d(3)
    network.train().frozen.eval()
    assert Evaluator(Split(), [], CLASSES, CPU, ROWS)(network)
    latency_ms(network, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), runs=1)
    assert (network.training, network.frozen.training) == (True, False)


def test_interrupted_between_batches() -> None:
    polled: list[int] = []

    def at_the_third(index: int) -> bool:
        polled.append(index)
        return index == 2

    network = LooksUp(LOGITS).train()
    assert Evaluator(Split(), [], CLASSES, CPU, ROWS)(network, interrupted=at_the_third) is None
    assert polled == [0, 1, 2]
    assert network.training


def test_latency_is_a_time_in_order() -> None:
    median, p95 = latency_ms(LooksUp(LOGITS).train(), torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    assert 0 < median <= p95
