"""Reads a store with NumPy and threads: for machines without FFCV; its batches are the same bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdscale.data.views import Bytes, Rows, ViewFunction
from kdscale.errors import DataError

__all__ = ["TorchReader"]

BATCHES_AHEAD = 3
"""Batches that wait for the consumer, as many as FFCV prepares."""


class TorchReader:
    """Reads one split of a store.

    Args:
        folder: of the store.
        split: train or test.
        encoding: raw or jpeg.
        channels: of the images.
        workers: threads that make batches.
    """

    def __init__(self, folder: Path, split: str, encoding: str, channels: int, workers: int) -> None:
        self._workers = workers
        self._images: _Array | _Jpegs
        if encoding == "jpeg":
            self._images = _Jpegs(folder, split, channels)
        else:
            self._images = _Array(folder / f"{split}.images.npy")

    def read(self, rows: Rows, batch_size: int, views: ViewFunction) -> Generator[Bytes, None, None]:
        """Yield views of `rows`, `batch_size` at a time; closing the generator ends its threads.

        Raises:
            DataError: a row that the split does not have.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self._images)):
            raise DataError(f"rows {rows.min()} to {rows.max()} were asked of a split of {len(self._images)}")
        batches = [rows[n : n + batch_size] for n in range(0, len(rows), batch_size)]
        return self._batches(batches, views)

    def _batches(self, batches: list[Rows], views: ViewFunction) -> Generator[Bytes, None, None]:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="torch-loader")
        ahead: deque[Future[Bytes]] = deque()
        try:
            for rows in batches:
                ahead.append(pool.submit(self._batch, rows, views))
                if len(ahead) > BATCHES_AHEAD + self._workers - 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, rows: Rows, views: ViewFunction) -> Bytes:
        return views(self._images.take(rows), rows)


class _Array:
    """Raw images in a memory-mapped array."""

    def __init__(self, path: Path) -> None:
        self._images: NDArray[np.uint8] = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._images)

    def take(self, rows: Rows) -> Bytes:
        return np.take(self._images, rows, axis=0)


class _Jpegs:
    """JPEG files one after the other."""

    def __init__(self, folder: Path, split: str, channels: int) -> None:
        self._offsets: NDArray[np.int64] = np.load(folder / f"{split}.offsets.npy")
        self._blob = np.memmap(folder / f"{split}.images.bin", np.uint8, "r")
        self._mode = "RGB" if channels == 3 else "L"

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def take(self, rows: Rows) -> Bytes:
        images = np.stack([self._decoded(row) for row in rows.tolist()])
        return images if self._mode == "RGB" else images[..., None]

    def _decoded(self, row: int) -> NDArray[np.uint8]:
        encoded = self._blob[self._offsets[row] : self._offsets[row + 1]]
        with Image.open(BytesIO(encoded.tobytes())) as image:
            return np.asarray(image.convert(self._mode))
