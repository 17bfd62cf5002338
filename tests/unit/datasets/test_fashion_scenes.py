"""Scenes of Fashion-MNIST: the same everywhere, and their masks say what is where."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.datasets.fashion_scenes import FashionScenes, SceneSource
from kdscale.errors import ConfigError

pytestmark = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist"
)


def scenes(**options: Any) -> FashionScenes:
    return FashionScenes(DataConfig(name="fashion_scenes", options=options), download=False)


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return scenes().open("train")


def test_a_scene_is_the_same_on_every_machine(source: SceneSource) -> None:
    text = b"".join(source[row][0].tobytes() for row in range(20))
    assert hashlib.sha256(text).hexdigest()[:16] == "36b86a0e2f0169a7"


def test_a_scene_depends_on_its_row_alone(source: SceneSource) -> None:
    fewer = scenes(train_rows=7).open("train")
    for row in range(7):
        np.testing.assert_array_equal(fewer[row][0], source[row][0])
    assert not np.array_equal(source[0][0], scenes(seed=1).open("train")[0][0])
    assert not np.array_equal(source[0][0], scenes().open("test")[0][0])
    with pytest.raises(IndexError):
        fewer[7]


def test_a_mask_is_sure_where_a_garment_is_bright_or_the_canvas_dark(source: SceneSource) -> None:
    for row in range(30):
        image, label = source[row]
        grey, stored = image[:, :, 0], image[:, :, 1]
        np.testing.assert_array_equal(stored > 1, grey >= 64)
        np.testing.assert_array_equal(stored == 1, grey < 16)
        assert stored.max() <= scenes().info.classes
        assert label == source.labels[row]


def test_a_scene_of_one_garment_shows_that_garment() -> None:
    one = scenes(garments=1, canvas=28, train_rows=40)
    source = one.open("train")
    assert one.info.size == 28
    for row in range(40):
        image, label = source[row]
        same = (source.garments.images[..., 0] * (source.garments.images[..., 0] >= 16) == image[:, :, 0]).all((1, 2))
        assert label - 1 in source.garments.labels[same]
        assert set(np.unique(image[:, :, 1])) <= {0, 1, label + 1}


def test_its_constants_are_measured(source: SceneSource) -> None:
    info = scenes().info
    grey = np.stack([source[row][0][:, :, 0] for row in range(0, len(source), 10)]) / 255
    np.testing.assert_allclose([grey.mean(), grey.std()], [*info.mean, *info.std], atol=5e-3)
    assert (info.classes, info.channels, info.planes, info.per_pixel) == (11, 1, 2, True)


def test_other_options_are_other_data() -> None:
    assert len({scenes(**o).fingerprint() for o in ({}, {"canvas": 96}, {"garments": 2}, {"seed": 1})}) == 4
    with pytest.raises(ConfigError, match=r"data\.options\.canvas"):
        scenes(canvas=20)
