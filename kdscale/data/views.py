"""Views of images: each a pure function of (view_seed, view, row), for training, and one plain view to evaluate.

Operations follow one another as `AugmentConfig` lists them. A view depends on nothing else: not on the
batch it stands in, the rank, the loader, the order or what was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdscale.api import DatasetInfo
from kdscale.config.schema import AugmentConfig, DataConfig
from kdscale.data import view_draws, view_pixels
from kdscale.draws import seed_of

__all__ = [
    "VIEWS_REVISION", "Bytes", "ViewFunction", "ViewScheme", "eval_views", "make_views", "mix", "parted",
    "partner_rows",
]  # fmt: skip

VIEWS_REVISION = 1
"""Raised whenever a view's pixels change: it enters what teacher caches are keyed by."""

Bytes = NDArray[np.uint8]
Rows = NDArray[np.int64]
ViewFunction = Callable[[Bytes, Rows], Bytes]
"""From stored images (B, T, T, K) and their rows to new views (B, S, S, K)."""


@dataclass(frozen=True)
class ViewScheme:
    """How training views are made."""

    size: int
    """Pixels a side of a view."""
    augment: AugmentConfig
    view_seed: int
    fill: tuple[int, ...]
    """The data set's mean pixel, per channel: what cutout leaves."""
    per_pixel: bool = False
    """Whether the last plane is classes of pixels: they move with the image, and none is averaged with another."""

    @classmethod
    def of(cls, data: DataConfig, info: DatasetInfo) -> ViewScheme:
        """The scheme that a stage's data section asks for."""
        fill = tuple(int(255 * mean + 0.5) for mean in info.mean)
        return cls(data.size or info.size, data.augment, data.view_seed, fill, info.per_pixel)

    def states(self, rows: Rows, view: int) -> NDArray[np.uint64]:
        """(B,) states that everything is drawn from."""
        seed = np.uint64(seed_of("view", self.view_seed, view))
        states: NDArray[np.uint64] = view_draws.row_states(seed, rows)
        return states


def make_views(images: Bytes, rows: Rows, view: int, scheme: ViewScheme) -> Bytes:
    """Make one view of each row, without mixing.

    Args:
        images: (B, T, T, K) as stored.
        rows: (B,) their numbers in the full train set.
        view: number of the view.
        scheme: what is done to them.

    Returns:
        (B, S, S, K) in memory of its own.
    """
    states, augment = scheme.states(rows, view), scheme.augment
    images = _zoomed(images, states, scheme)
    moves = view_draws.shifts(states, augment.crop, int(augment.flip)) if augment.crop or augment.flip else None
    out = _placed(images, moves, scheme.size)
    if augment.jitter is not None:
        strengths = (augment.jitter.brightness, augment.jitter.contrast, augment.jitter.saturation)
        reach = tuple(round(strength * 2**view_draws.UNIT_BITS) for strength in strengths)
        colours = np.ascontiguousarray(out[..., :-1]) if scheme.per_pixel else out
        view_pixels.jitter_colours(colours, view_draws.factors(states, reach))
        out[..., : colours.shape[3]] = colours
    if augment.cutout:
        fill = np.array(scheme.fill, np.uint8)
        view_pixels.cut_out(out, view_draws.centres(states, scheme.size, False), augment.cutout, fill)
    return out


def eval_views(images: Bytes, size: int, *, per_pixel: bool = False) -> Bytes:
    """The plain view: (B, T, T, K) padded with zeros, or resized, to (B, S, S, K) in memory of its own."""
    if images.shape[1] > size:
        return _resampled(images, _whole(images), size, per_pixel)
    return _placed(images, None, size)


def parted(views: Bytes) -> tuple[Bytes, Rows]:
    """Part views whose last plane is classes of pixels into images (B, S, S, K) and labels (B, S, S).

    A plane of bytes holds class + 1: what was padded is 0, which becomes IGNORED.
    """
    return np.ascontiguousarray(views[..., :-1]), (views[..., -1] - np.uint8(1)).astype(np.int64)


def partner_rows(rows: Rows, view: int, scheme: ViewScheme, pool: Rows) -> Rows:
    """(B,) rows of `pool`, the rows that train, that each row is mixed with; each in its own view `view`."""
    partners: Rows = view_draws.partners(scheme.states(rows, view), pool)
    return partners


def mix(images: Bytes, partners: Bytes, rows: Rows, view: int, scheme: ViewScheme) -> NDArray[np.float32]:
    """Mix views (B, S, S, K) with their partners' in place.

    Source: mixup, Zhang et al., arXiv:1710.09412; cutmix, Yun et al., arXiv:1905.04899 (lam is the share of
    pixels that the box, cut off at the border, really leaves).

    Returns:
        (B,) the share of each row's own label.
    """
    states, augment = scheme.states(rows, view), scheme.augment
    unit = 2**view_draws.UNIT_BITS
    shares = view_draws.shares(states, float(augment.mixup or augment.cutmix))
    if augment.mixup:
        view_pixels.blend(images, partners, shares)
        return np.asarray(shares / unit, np.float32)
    sides = (scheme.size * np.sqrt(1 - shares / unit)).astype(np.int64)
    centres = view_draws.centres(states, scheme.size, True)
    pasted = view_pixels.cut_paste(images, partners, centres, sides)
    return np.asarray(1 - pasted / scheme.size**2, np.float32)


def _zoomed(images: Bytes, states: NDArray[np.uint64], scheme: ViewScheme) -> Bytes:
    """Cut random boxes, or shrink what is stored larger than views are; the rest comes back as it is."""
    wish, source = scheme.augment.resized_crop, images.shape[1]
    if wish is not None:
        boxes = view_draws.boxes(states, source, wish.scale, wish.ratio)
        return _resampled(images, boxes, scheme.size, scheme.per_pixel)
    return _resampled(images, _whole(images), scheme.size, scheme.per_pixel) if source > scheme.size else images


def _resampled(images: Bytes, boxes: Rows, size: int, per_pixel: bool) -> Bytes:  # noqa: FBT001
    if per_pixel:
        pictures = _resampled(np.ascontiguousarray(images[..., :-1]), boxes, size, per_pixel=False)
        return np.concatenate([pictures, _nearest(images[..., -1], boxes, size)[..., None]], axis=3)
    out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    view_pixels.resample_boxes(images, boxes, out)
    return out


def _nearest(planes: Bytes, boxes: Rows, size: int) -> Bytes:
    """Of each plane (B, T, T) its box (top, left, height, width), by the pixel under each centre, as (B, S, S)."""
    centres = 2 * np.arange(size) + 1
    down, across = (boxes[:, k, None] + centres * boxes[:, k + 2, None] // (2 * size) for k in (0, 1))
    picked: Bytes = planes[np.arange(len(planes))[:, None, None], down[:, :, None], across[:, None, :]]
    return picked


def _placed(images: Bytes, moves: Rows | None, size: int) -> Bytes:
    """Centre images in new memory, moved and mirrored where `moves` (B, 3) says so."""
    if moves is None and images.shape[1] == size:
        return images.copy()
    out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    view_pixels.shift_and_flip(images, np.zeros((len(images), 3), np.int64) if moves is None else moves, out)
    return out


def _whole(images: Bytes) -> Rows:
    count, height, width, _ = images.shape
    return np.tile(np.array([0, 0, height, width], np.int64), (count, 1))
