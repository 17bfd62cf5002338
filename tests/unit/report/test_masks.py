from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdscale.report.masks import colour_of, tinted


@given(grey=st.integers(0, 255), index=st.integers(0, 254))
def test_a_pixel_is_half_image_half_its_class(grey: int, index: int) -> None:
    image = np.full((1, 2, 1, 1), grey, np.uint8)
    classes = np.array([[[index + 1], [0]]], np.uint8)
    found = tinted(image, classes)
    assert found.shape == (1, 2, 1, 3)
    assert np.abs(found[0, 0, 0] - (grey + np.array(colour_of(index))) / 2).max() <= 1
    assert np.abs(found[0, 1, 0] - (grey + 255.0) / 2).max() <= 1


def test_colour_images_keep_their_channels() -> None:
    image = np.zeros((1, 1, 1, 3), np.uint8)
    image[..., 2] = 200
    unlabelled = np.zeros((1, 1, 1), np.uint8)
    assert tinted(image, unlabelled)[0, 0, 0].tolist() == [128, 128, 228]


def test_classes_of_near_numbers_are_far_apart() -> None:
    colours = np.array([colour_of(index) for index in range(11)], int)
    gaps = np.abs(colours[:, None] - colours[None]).sum(2)
    assert gaps[~np.eye(11, dtype=bool)].min() > 60
