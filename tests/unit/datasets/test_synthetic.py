"""Synthetic images: the same bytes everywhere, and something can be learnt from them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.datasets.synthetic import Synthetic
from kdscale.errors import ConfigError


def synthetic(**options: object) -> Synthetic:
    return Synthetic(DataConfig(name="synthetic", options=options))


def arrays(dataset: Synthetic, split: str) -> tuple[np.ndarray, np.ndarray]:
    source = dataset.open(split)
    images, labels = zip(*(source[row] for row in range(len(source))), strict=True)
    return np.stack(images), np.array(labels)


def test_a_sample_is_the_same_on_every_machine() -> None:
    source = synthetic(channels=3, size=32).open("train")
    assert (
        hashlib.sha256(b"".join(source[row][0].tobytes() for row in range(20))).hexdigest()[:16] == "e97a4e6f1451207c"
    )


def test_shapes_follow_the_options() -> None:
    dataset = synthetic(classes=7, train_rows=20, test_rows=9, size=12, channels=3)
    images, labels = arrays(dataset, "test")
    assert images.shape == (9, 12, 12, 3)
    assert images.dtype == np.uint8
    assert labels.max() < dataset.info.classes == 7
    with pytest.raises(IndexError):
        dataset.open("test")[9]


def test_each_option_makes_another_data_set() -> None:
    variants = [{}, {"classes": 11}, {"noise": 0.4}, {"seed": 1}, {"size": 29}, {"channels": 3}, {"train_rows": 9}]
    assert len({synthetic(**options).fingerprint() for options in variants}) == len(variants)
    assert (synthetic(seed=1).open("train")[0][0] != synthetic().open("train")[0][0]).any()
    assert (synthetic().open("test")[0][0] != synthetic().open("train")[0][0]).any()


def test_a_nearest_mean_beats_chance_but_is_not_perfect() -> None:
    dataset = synthetic(train_rows=500, test_rows=200, noise=1.0)
    (images, labels), (test_images, test_labels) = arrays(dataset, "train"), arrays(dataset, "test")
    means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    guesses = ((test_images[:, None] - means) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    assert 0.3 < (guesses == test_labels).mean() < 0.99


def test_bad_options_name_the_key_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.clases: unknown option; did you mean classes\?"):
        synthetic(clases=3)
    with pytest.raises(ConfigError, match=r"data\.options\.classes: .*got 1 \(synthetic\)"):
        synthetic(classes=1)
