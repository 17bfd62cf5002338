"""Pixels against what NumPy, exact fractions and Pillow make of the same draws."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kdscale.data import view_pixels
from kdscale.draws import hash64


def noise(count: int, size: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    shape = (count, size, size, channels)
    return hash64(seed, np.arange(np.prod(shape))).astype(np.uint8).reshape(shape)


@given(
    channels=st.sampled_from([1, 2, 3, 4]), source=st.integers(1, 9), size=st.integers(1, 12),
    down=st.integers(-13, 13), right=st.integers(-13, 13), mirrored=st.integers(0, 1),
)  # fmt: skip
def test_shift_and_flip(channels: int, source: int, size: int, down: int, right: int, mirrored: int) -> None:
    images = noise(2, source, channels)
    size = max(size, source)
    canvas = np.zeros((2, size + 40, size + 40, channels), np.uint8)
    at = 20 + (size - source) // 2
    canvas[:, at : at + source, at : at + source] = images
    expected = canvas[:, 20 + down : 20 + down + size, 20 + right : 20 + right + size]
    out = np.full((2, size, size, channels), 99, np.uint8)

    view_pixels.shift_and_flip(images, np.array([[down, right, mirrored]] * 2, np.int64), out)

    np.testing.assert_array_equal(out, expected[:, :, ::-1] if mirrored else expected)


def exactly(line: NDArray[np.uint8], size: int) -> list[Fraction]:
    """One line resampled by the triangle filter in exact fractions."""
    length = len(line)
    support = max(Fraction(length, size), Fraction(1))
    result = []
    for i in range(size):
        centre = Fraction((2 * i + 1) * length, 2 * size)
        weights = [max(Fraction(0), 1 - abs(j + Fraction(1, 2) - centre) / support) for j in range(length)]
        result.append(sum(w * int(v) for w, v in zip(weights, line, strict=True)) / sum(weights))
    return result


@pytest.mark.parametrize(("length", "size"), [(8, 8), (8, 5), (5, 8), (7, 1), (1, 7), (32, 9), (20, 6)])
def test_resampling_is_the_triangle_filter(length: int, size: int) -> None:
    """Down then across on an image whose rows are equal: the exact answer of one line, rounded once."""
    line = noise(1, length, 1)[0, 0, :, 0]
    images = np.tile(line, (1, length, 1))[..., None]
    out = np.empty((1, size, size, 1), np.uint8)

    view_pixels.resample_boxes(images, np.array([[0, 0, length, length]]), out)

    exact = np.array([float(v) for v in exactly(line, size)])
    assert np.abs(out[0, :, :, 0] - exact).max() < 0.52


@given(
    channels=st.sampled_from([1, 3]), size=st.integers(1, 40), top=st.integers(0, 20), left=st.integers(0, 20),
    height=st.integers(1, 40), width=st.integers(1, 40),
)  # fmt: skip
def test_resampling_a_box_agrees_with_pillow(
    channels: int, size: int, top: int, left: int, height: int, width: int
) -> None:
    image = noise(1, 60, channels, seed=size)[0]
    out = np.empty((1, size, size, channels), np.uint8)
    cut = image[top : top + height, left : left + width]
    picture = Image.fromarray(cut if channels == 3 else cut[..., 0])
    expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)

    view_pixels.resample_boxes(image[None], np.array([[top, left, height, width]]), out)

    assert np.abs(out[0].astype(int) - expected).max() <= 1


def test_resampling_to_the_same_size_changes_nothing() -> None:
    images, out = noise(3, 11, 3), np.empty((3, 11, 11, 3), np.uint8)
    view_pixels.resample_boxes(images, np.array([[0, 0, 11, 11]] * 3), out)
    np.testing.assert_array_equal(out, images)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_plain_image_stays_plain(value: int) -> None:
    images, out = np.full((1, 50, 50, 3), value, np.uint8), np.empty((1, 7, 7, 3), np.uint8)
    view_pixels.resample_boxes(images, np.array([[3, 4, 33, 29]]), out)
    assert (out == value).all()


def jittered(image: NDArray[np.uint8], bright: float, contrast: float, saturation: float) -> NDArray[np.float64]:
    """The same in float64, rounded and clipped after each step."""

    def grey(x: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = np.array([0.299, 0.587, 0.114]) if x.shape[2] == 3 else np.full(x.shape[2], 1 / x.shape[2])
        return np.floor(x @ weights + 0.5)[..., None]

    def clipped(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.floor(x + 0.5).clip(0, 255)

    x = clipped(image * bright)
    mean = np.floor(grey(x).mean() + 0.5)
    x = clipped(mean + contrast * (x - mean))
    return clipped(grey(x) + saturation * (x - grey(x)))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("factors", [(1, 1, 1), (0.5, 1, 1), (1.5, 1, 1), (1, 0.25, 1), (1, 1, 0), (1.25, 0.75, 1.5)])
def test_jitter(channels: int, factors: tuple[float, float, float]) -> None:
    images = noise(4, 9, channels)
    expected = np.stack([jittered(image, *factors) for image in images])

    view_pixels.jitter_colours(images, np.tile((np.array(factors) * 65536).astype(np.int64), (4, 1)))

    assert np.abs(images - expected).max() <= (0 if factors == (1, 1, 1) else 1)


def test_cut_out_is_cut_off_at_the_border() -> None:
    images = noise(2, 10, 3)
    expected = images.copy()
    expected[0, 0:2, 7:10], expected[1, 3:7, 3:7] = (1, 2, 3), (1, 2, 3)

    view_pixels.cut_out(images, np.array([[0, 9], [5, 5]]), 4, np.array([1, 2, 3], np.uint8))

    np.testing.assert_array_equal(images, expected)


def test_blend_is_the_rounded_mean_weighted_by_the_share() -> None:
    images, partners = noise(3, 6, 3), noise(3, 6, 3, seed=1)
    shares = np.array([0, 16384, 65536])
    lam = shares[:, None, None, None] / 65536
    expected = np.floor(lam * images + (1 - lam) * partners + 0.5)

    view_pixels.blend(images, partners, shares)

    np.testing.assert_array_equal(images, expected)


def test_cut_paste_takes_the_square_from_the_partner_and_counts_its_pixels() -> None:
    images, partners = noise(3, 10, 1), noise(3, 10, 1, seed=1)
    expected = images.copy()
    expected[1, 0:3, 8:10], expected[2] = partners[1, 0:3, 8:10], partners[2]

    pasted = view_pixels.cut_paste(images, partners, np.array([[5, 5], [1, 10], [5, 5]]), np.array([0, 4, 20]))

    np.testing.assert_array_equal(images, expected)
    assert pasted.tolist() == [0, 6, 100]
