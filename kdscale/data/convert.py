"""From a data set's samples to what a store holds: squares of one size, raw or as JPEG."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdscale.api import DatasetInfo, Source
from kdscale.config.schema import DataConfig
from kdscale.errors import ConfigError, DataError, KDScaleError

__all__ = ["Converter", "Record", "stored_side"]

Record = tuple[NDArray[np.uint8], int]
"""Pixels (T, T, K), or the bytes of a JPEG file; and the label."""

JPEG_QUALITY = 95
CHUNK_ROWS = 64
"""Samples that a thread reads at a time."""


def stored_side(info: DatasetInfo, data: DataConfig) -> int:
    """Pixels a side on disk: no larger than the images are, since padding is the view's work."""
    return min(data.store_size or data.size or info.size, info.size)


class Converter:
    """Reads samples in several threads and brings each into the stored form.

    Args:
        info: what samples must look like.
        side: pixels a side to store.
        encoding: raw pixels or JPEG.
    """

    def __init__(self, info: DatasetInfo, side: int, encoding: Literal["raw", "jpeg"]) -> None:
        if encoding == "jpeg" and info.planes not in (1, 3):
            raise ConfigError(f"data.store: jpeg holds 1 or 3 channels, this data has {info.planes}: use raw")
        self.info, self.side, self.encoding = info, side, encoding

    def bytes_at_least(self, rows: int) -> int:
        """Bytes that so many rows need on disk whatever they show; JPEG hardly ever shrinks images fiftyfold."""
        pixels = rows * self.side**2 * self.info.planes
        return pixels // 50 if self.encoding == "jpeg" else pixels

    def records(self, source: Source, split: str) -> Iterator[Record]:
        """Yield every sample in row order. Raises: DataError naming the row that cannot be used."""
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        chunks = iter([range(n, min(n + CHUNK_ROWS, len(source))) for n in range(0, len(source), CHUNK_ROWS)])
        with ThreadPoolExecutor(threads, thread_name_prefix="convert") as pool:
            ahead: deque[Future[list[Record]]] = deque()
            try:
                for chunk in chunks:
                    ahead.append(pool.submit(self._chunk, source, split, chunk))
                    if len(ahead) > 2 * threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _chunk(self, source: Source, split: str, rows: range) -> list[Record]:
        return [self._record(source, split, row) for row in rows]

    def _record(self, source: Source, split: str, row: int) -> Record:
        try:
            image, label = source[row]
        except KDScaleError:
            raise
        except Exception as error:  # a data set's own reader may raise anything on a damaged file
            raise DataError(f"{split} row {row} cannot be read: {type(error).__name__}: {error}") from error
        planes, classes = self.info.planes, self.info.classes
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != planes or 0 in image.shape:
            shape = f"{image.dtype} {image.shape}"
            raise DataError(f"{split} row {row} is {shape}, expected uint8 (height, width, {planes})")
        if not 0 <= label < classes:
            raise DataError(f"{split} row {row} has label {label}, expected 0 to {classes - 1}")
        if self.info.per_pixel and image[:, :, -1].max() > classes:
            raise DataError(f"{split} row {row} has a pixel of class {image[:, :, -1].max() - 1}, of {classes} classes")
        pixels = squared(image, self.side, per_pixel=self.info.per_pixel)
        return (encode_jpeg(pixels) if self.encoding == "jpeg" else pixels), int(label)


def squared(image: NDArray[np.uint8], side: int, *, per_pixel: bool = False) -> NDArray[np.uint8]:
    """Shrink an image (H, W, K) until its shorter side is `side`, then cut or pad its centre to (side, side, K).

    Images that are smaller are padded with zeros, never enlarged. Of classes of pixels, the last plane with
    `per_pixel`, none is averaged with another.
    """
    height, width, channels = image.shape
    if (height, width) == (side, side):
        return image
    shorter = min(height, width)
    if shorter > side:
        height, width = round(height * side / shorter), round(width * side / shorter)
        shrunk = _shrunk(image[:, :, :-1] if per_pixel else image, height, width)
        image = np.dstack([shrunk, _picked(image[:, :, -1], height, width)]) if per_pixel else shrunk
    out = np.zeros((side, side, channels), np.uint8)
    taken = [(max(0, (n - side) // 2), max(0, (side - n) // 2), min(n, side)) for n in (height, width)]
    (top, down, high), (left, right, wide) = taken
    out[down : down + high, right : right + wide] = image[top : top + high, left : left + wide]
    return out


def _shrunk(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize with Pillow, whose antialiased filter works in integers: the same on every machine."""
    planes = [image] if image.shape[2] == 3 else [image[:, :, k] for k in range(image.shape[2])]
    resized = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)) for plane in planes
    ]
    return resized[0] if image.shape[2] == 3 else np.stack(resized, axis=2)


def _picked(plane: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The nearest pixel (H, W) of each of the result's."""
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.NEAREST))


def encode_jpeg(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode (T, T, 1 or 3) as a JPEG file's bytes."""
    buffer = BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.frombuffer(buffer.getvalue(), np.uint8)
