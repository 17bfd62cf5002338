"""Fashion-MNIST as Debian ships it is the published one; its constants are computed from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.datasets.fashion_mnist import FashionMNIST
from kdscale.errors import ConfigError

pytestmark = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def dataset() -> FashionMNIST:
    return FashionMNIST(DataConfig(name="fashion_mnist"), download=False)


def test_the_systems_files_are_the_published_ones(dataset: FashionMNIST) -> None:
    assert dataset.files.is_published()
    nowhere = FashionMNIST(DataConfig(), download=False)
    nowhere.files.publication = replace(nowhere.files.publication, system=())
    assert not nowhere.files.is_here()
    assert nowhere.fingerprint() == dataset.fingerprint(), "a plan made before the download stays valid after it"


def test_shapes_and_labels(dataset: FashionMNIST) -> None:
    source = dataset.open("test")
    image, label = source[0]
    assert (image.shape, image.dtype, label) == ((28, 28, 1), np.uint8, 9)
    assert np.bincount(source.labels).tolist() == [1000] * 10
    assert dataset.info.class_names[label] == "Ankle boot"


def test_mean_and_std_are_those_of_the_training_images(dataset: FashionMNIST) -> None:
    source = dataset.open("train")
    assert len(source) == dataset.info.train_rows
    assert source.images.mean() / 255 == pytest.approx(dataset.info.mean[0], abs=1e-4)
    assert source.images.std() / 255 == pytest.approx(dataset.info.std[0], abs=1e-4)


def test_it_has_no_options() -> None:
    with pytest.raises(ConfigError, match=r"data\.options\.clases: unknown option; fashion_mnist knows no options"):
        FashionMNIST(DataConfig(options={"clases": 3}))
