"""Figures of pixels against scikit-learn, computed at once over all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from kdscale.api import IGNORED, Outputs
from kdscale.train.pixels import PixelFigures, PixelSums

CLASSES = 5


def figures(answers: np.ndarray, labels: np.ndarray, classes: int = CLASSES, batch: int = 3) -> PixelFigures:
    """Of answers (N, H, W), in batches."""
    sums = PixelSums(classes, torch.device("cpu"))
    for start in range(0, len(labels), batch):
        mine = torch.from_numpy(answers[start : start + batch])
        logits = torch.nn.functional.one_hot(mine, classes).movedim(-1, 1).float()
        sums.add(Outputs(logits), torch.from_numpy(labels[start : start + batch]), {})
    return sums.figures()


def drawn(seed: int, ignored: float = 0.2, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (7, 6, 6))
    labels[rng.random(labels.shape) < ignored] = IGNORED
    return rng.integers(0, classes, (7, 6, 6)), labels


@given(seed=st.integers(0, 999), ignored=st.sampled_from([0.0, 0.2, 0.95]))
def test_equals_scikit_learns_over_all_labelled_pixels(seed: int, ignored: float) -> None:
    answers, labels = drawn(seed, ignored)
    found, keep = figures(answers, labels), labels != IGNORED
    seen = np.union1d(labels[keep], answers[keep])
    want = jaccard_score(labels[keep], answers[keep], labels=seen, average=None)
    np.testing.assert_allclose([found.per_class[c] for c in seen], want)
    assert found.miou == pytest.approx(want.mean())
    assert found.pixel_accuracy == pytest.approx(accuracy_score(labels[keep], answers[keep]))
    assert found.samples == 7


def test_the_labels_themselves_have_a_miou_of_1() -> None:
    _, labels = drawn(0)
    found = figures(np.where(labels == IGNORED, 3, labels), labels)
    assert (found.miou, found.pixel_accuracy) == (1, 1)


def test_a_constant_answer_has_the_share_of_its_class_over_all_classes() -> None:
    labels = np.zeros((4, 8, 8), np.int64)
    labels[:, :2], labels[:, 2:4] = 1, 2  # a quarter each; classes 3 and 4 never come
    found = figures(np.zeros_like(labels), labels)
    assert found.miou == pytest.approx(0.5 / 3)
    assert found.pixel_accuracy == 0.5
    assert [math.isnan(iou) for iou in found.per_class] == [False, False, False, True, True]


def test_it_is_no_mean_over_images() -> None:
    """One image without an error and one with nothing right: each class's pixels are added up first."""
    labels = np.stack([np.zeros((4, 4), np.int64), np.repeat([[0, 1, 1, 1]], 4, axis=0)])
    answers = np.stack([labels[0], np.zeros((4, 4), np.int64)])
    single = [figures(answers[i : i + 1], labels[i : i + 1], 2).miou for i in range(2)]
    assert figures(answers, labels, 2).miou == pytest.approx((20 / 32 + 0) / 2)
    assert np.mean(single) == pytest.approx((1 + (4 / 16 + 0) / 2) / 2)


@given(seed=st.integers(0, 99), batch=st.integers(1, 7))
def test_batches_change_nothing(seed: int, batch: int) -> None:
    given = drawn(seed)
    assert repr(figures(*given, batch=batch)) == repr(figures(*given, batch=7))


def test_without_any_labelled_pixel_all_figures_are_0() -> None:
    answers, labels = drawn(0, 1.0)
    assert (figures(answers, labels).miou, figures(answers, labels).pixel_accuracy) == (0, 0)
