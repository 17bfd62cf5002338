"""Samples brought into the stored form: squares of one size, and errors that name the row."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdscale.api import DatasetInfo
from kdscale.config.schema import DataConfig
from kdscale.data.convert import Converter, encode_jpeg, squared, stored_side
from kdscale.errors import ConfigError, DataError

INFO = DatasetInfo(4, 3, 8, 300, 5, (0.5,) * 3, (0.5,) * 3, tuple("abcd"))


class Made:
    """A source whose samples come from a function."""

    def __init__(self, count: int, sample: object) -> None:
        self.count, self.sample = count, sample

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        return self.sample(row)  # type: ignore[operator, no-any-return]


def plain(row: int) -> tuple[NDArray[np.uint8], int]:
    return np.full((8, 8, 3), row % 256, np.uint8), row % 4


def test_records_come_in_row_order_whatever_thread_is_done_first() -> None:
    def slow_at_first(row: int) -> tuple[NDArray[np.uint8], int]:
        time.sleep(0.05 if row == 0 else 0)
        return plain(row)

    records = list(Converter(INFO, 8, "raw").records(Made(300, slow_at_first), "train"))
    assert [int(pixels[0, 0, 0]) for pixels, _ in records] == [row % 256 for row in range(300)]
    assert [label for _, label in records] == [row % 4 for row in range(300)]


def test_leaving_early_leaves_no_thread() -> None:
    before = threading.active_count()
    records = Converter(INFO, 8, "raw").records(Made(300, plain), "train")
    next(records)
    records.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (lambda _: (np.zeros((8, 8), np.uint8), 0), r"uint8 \(8, 8\), expected uint8 \(height, width, 3\)"),
        (lambda _: (np.zeros((8, 8, 1), np.uint8), 0), "expected uint8"),
        (lambda _: (np.zeros((8, 8, 3), np.float32), 0), "float32"),
        (lambda _: (np.zeros((0, 8, 3), np.uint8), 0), "expected uint8"),
        (lambda _: (np.zeros((8, 8, 3), np.uint8), 4), "label 4, expected 0 to 3"),
        (lambda _: (np.zeros((8, 8, 3), np.uint8), -1), "label -1"),
        (lambda _: 1 // 0, "cannot be read: ZeroDivisionError"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(sample: object, says: str) -> None:
    with pytest.raises(DataError, match=rf"train row 70 .*{says}"):
        list(Converter(INFO, 8, "raw").records(Made(90, lambda row: sample(row) if row == 70 else plain(row)), "train"))


def test_large_images_are_shrunk_by_their_shorter_side_and_cut() -> None:
    ramp = np.arange(200, dtype=np.uint8)
    wide = np.broadcast_to(ramp[None, :, None], (100, 200, 3)).astype(np.uint8)
    made = squared(wide, 50)  # 50 x 100, of which the middle half is kept
    assert made.shape == (50, 50, 3)
    np.testing.assert_allclose(made[25, :, 0], np.arange(50, 150, 2) + 0.5, atol=1)
    np.testing.assert_array_equal(squared(wide.transpose(1, 0, 2).copy(), 50), made.transpose(1, 0, 2))


def test_small_images_are_padded_never_enlarged() -> None:
    made = squared(np.full((4, 12, 1), 7, np.uint8), 8)
    expected = np.zeros((8, 8, 1), np.uint8)
    expected[2:6] = 7
    np.testing.assert_array_equal(made, expected)


def test_channels_of_any_number_are_shrunk() -> None:
    image = np.arange(20 * 20 * 5, dtype=np.uint32).astype(np.uint8).reshape(20, 20, 5)
    made = squared(image, 10)
    assert made.shape == (10, 10, 5)
    np.testing.assert_array_equal(made[..., :3], squared(image[..., :3].copy(), 10))


@pytest.mark.parametrize(
    ("native", "size", "store_size", "side"),
    [(28, None, None, 28), (28, 32, None, 28), (96, 32, None, 32), (96, 32, 40, 40), (28, 32, 64, 28)],
)
def test_what_is_stored_is_never_larger_than_the_images(
    native: int, size: int | None, store_size: int | None, side: int
) -> None:
    assert stored_side(replace(INFO, size=native), DataConfig(size=size, store_size=store_size)) == side


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_to_the_pixels(channels: int) -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.broadcast_to(ramp[:, None, None], (32, 32, channels)).copy()
    with Image.open(BytesIO(encode_jpeg(pixels).tobytes())) as image:
        decoded = np.asarray(image).reshape(pixels.shape)
    assert np.abs(decoded.astype(int) - pixels).max() <= 4


def test_jpeg_of_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.store: jpeg holds 1 or 3 channels, this data has 2"):
        Converter(replace(INFO, channels=2), 8, "jpeg")
