"""Classes of pixels through conversion, views and loaders: they move with the image and are never averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.api import IGNORED
from kdscale.config.schema import DataConfig
from kdscale.data.convert import squared
from kdscale.data.loader import EvalLoader, TrainLoader, ffcv_problem
from kdscale.data.store import Kind, write_store
from kdscale.data.views import ViewScheme, eval_views, make_views, parted
from kdscale.errors import DataError
from tests.unit.data.places import Pictures, made_up

ROWS = np.arange(24)
AUGMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop": {"crop": 3, "flip": True},
    "resized": {"resized_crop": {"scale": [0.3, 1.0]}, "flip": True},
    "jitter": {"crop": 2, "jitter": {"brightness": 0.5, "contrast": 0.4, "saturation": 0.3}},
}


def masked(channels: int = 3, size: int = 12) -> Pictures:
    """Pictures whose last plane is a class + 1, or 0."""
    pictures = made_up(40, 12, size, channels)
    for name, (images, labels) in pictures.splits.items():
        planes = images[..., :1] % 6
        pictures.splits[name] = np.concatenate([images, planes], axis=3), labels
    pictures.info = replace(pictures.info, per_pixel=True)
    return pictures


def scheme(data: dict[str, Any], *, per_pixel: bool = True, channels: int = 3) -> ViewScheme:
    info = replace(masked(channels).info, per_pixel=per_pixel)
    return ViewScheme.of(DataConfig.model_validate(data), info)


def test_a_view_moves_image_and_classes_alike() -> None:
    """Where the classes' plane is a copy of a channel, crop and flip leave it one; padding is ignored."""
    images, _ = masked(1).splits["train"]
    images = np.concatenate([images[..., :1] // 50 + 1] * 2, axis=3)[ROWS]
    views = make_views(images, ROWS, 3, scheme({"size": 16, "augment": AUGMENTS["crop"]}, channels=1))
    pictures, labels = parted(views)
    np.testing.assert_array_equal(pictures[..., 0], np.where(labels == IGNORED, 0, labels + 1))
    assert (labels == IGNORED).mean() > 0.3, "a canvas of 16 pixels around 12"


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("size", [9, 12, 17])
def test_the_images_of_a_view_are_those_without_classes(name: str, size: int) -> None:
    images, _ = masked().splits["train"]
    data = {"size": size, "augment": AUGMENTS[name]}
    pictures, labels = parted(make_views(images[ROWS], ROWS, 2, scheme(data)))
    alone = make_views(np.ascontiguousarray(images[ROWS, :, :, :3]), ROWS, 2, scheme(data, per_pixel=False))
    np.testing.assert_array_equal(pictures, alone)
    assert set(np.unique(labels)) <= {*range(5), IGNORED}


@pytest.mark.parametrize("name", AUGMENTS)
def test_no_class_is_averaged_with_another(name: str) -> None:
    """Of classes 0 and 4 in a chequerboard, nothing in between comes out."""
    images, _ = masked().splits["train"]
    images = images.copy()
    images[..., 3] = np.where(np.indices((12, 12)).sum(0) % 2, 1, 5)
    _, labels = parted(make_views(images[ROWS], ROWS, 1, scheme({"size": 9, "augment": AUGMENTS[name]})))
    assert set(np.unique(labels)) <= {0, 4, IGNORED}
    assert {0, 4} <= set(np.unique(labels))
    plain = parted(eval_views(images[ROWS], 9, per_pixel=True))[1]
    assert set(np.unique(plain)) == {0, 4}


@given(height=st.integers(5, 30), width=st.integers(5, 30), side=st.integers(4, 12))
def test_conversion_shrinks_an_image_as_it_would_alone_and_picks_classes(height: int, width: int, side: int) -> None:
    generator = np.random.default_rng(height * 31 + width)
    image = generator.integers(0, 256, (height, width, 4), np.uint8)
    image[:, :, 3] = np.where(image[:, :, 3] < 128, 1, 7)
    done = squared(image, side, per_pixel=True)
    np.testing.assert_array_equal(done[:, :, :3], squared(np.ascontiguousarray(image[:, :, :3]), side))
    assert set(np.unique(done[:, :, 3])) <= {0, 1, 7}
    np.testing.assert_array_equal(
        done[:, :, 3] == 0, squared(np.ones((height, width, 1), np.uint8), side)[:, :, 0] == 0
    )


KINDS = [
    pytest.param("torch"),
    pytest.param("ffcv", marks=pytest.mark.skipif(ffcv_problem() is not None, reason="FFCV is not installed")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_loaders_yield_labels_of_pixels(tmp_path: Path, kind: Kind) -> None:
    pictures = masked()
    data = DataConfig.model_validate({"size": 14, "val_fraction": 0.2, "augment": AUGMENTS["crop"]})
    store = write_store(pictures, data, tmp_path / "store", kind)
    loader = TrainLoader(store, data, batch_size=8, seed=0, rank=0, world=1)
    for batch in loader.epoch(1):
        rows = batch.rows.numpy()
        views = make_views(pictures.splits["train"][0][rows], rows, 1, ViewScheme.of(data, store.info))
        np.testing.assert_array_equal(batch.labels.numpy(), parted(views)[1])
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), views[..., :3])
    seen = list(EvalLoader(store, data, "test", batch_size=5, rank=0, world=1))
    assert sum(len(batch.rows) for batch in seen) == 12
    first = parted(eval_views(pictures.splits["test"][0][:5], 14, per_pixel=True))
    np.testing.assert_array_equal(seen[0].labels.numpy(), first[1])
    np.testing.assert_array_equal(seen[0].images.permute(0, 2, 3, 1).numpy(), first[0])


def test_a_class_that_there_is_not_is_named(tmp_path: Path) -> None:
    pictures = masked()
    pictures.splits["test"][0][3, 5, 5, 3] = 9
    with pytest.raises(DataError, match="test row 3 has a pixel of class 8, of 5 classes"):
        write_store(pictures, DataConfig(), tmp_path / "store", "torch")
