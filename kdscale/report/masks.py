"""Pixels' classes laid over the images that they belong to."""

from __future__ import annotations

import colorsys

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

__all__ = ["colour_of", "tinted"]

_STRENGTH = 0.5
"""Share of the colour: the image stays to be seen, so that a shifted mask is."""
_UNLABELLED = (255, 255, 255)
_TURN = 0.618034
"""Of the circle of hues, from class to class: the golden section, by which neighbours in number lie far apart."""


def colour_of(index: int) -> tuple[int, int, int]:
    """Colour of a class, in sRGB bytes; black for class 0, which is the background by custom."""
    if index == 0:
        return 0, 0, 0
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(index * _TURN % 1, 0.85, 0.95))
    return red, green, blue


def tinted(images: UInt8[np.ndarray, "N H W K"], classes: UInt8[np.ndarray, "N H W"]) -> UInt8[np.ndarray, "N H W 3"]:
    """Lay each pixel's class over it.

    Args:
        images: grey or RGB.
        classes: each pixel's class + 1, or 0 where it has no label: as data sets store them; these turn pale.
    """
    palette = np.array([_UNLABELLED, *(colour_of(index) for index in range(255))], np.float32)
    rgb: NDArray[np.uint8] = images if images.shape[3] == 3 else images[..., :1].repeat(3, axis=3)
    mixed: NDArray[np.float32] = (1 - _STRENGTH) * rgb + _STRENGTH * palette[classes]
    return mixed.round().astype(np.uint8)
