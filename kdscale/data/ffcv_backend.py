"""Reads a store through FFCV."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdscale.data.ffcv_fence import open_loader, start_epoch
from kdscale.data.views import Bytes, Rows, ViewFunction

__all__ = ["FfcvReader"]


class FfcvReader:
    """Reads one split of a store; serves any number of passes, also at the same time.

    Args:
        folder: of the store.
        split: train or test.
        encoding: raw or jpeg.
        channels: of the images.
        workers: threads that make a batch.
    """

    def __init__(self, folder: Path, split: str, encoding: str, channels: int, workers: int) -> None:
        self._loader = open_loader(folder / f"{split}.beton", encoding, workers)
        self._drop_channels = encoding == "jpeg" and channels == 1
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="views") if workers > 1 else None
        self._workers = workers

    def read(self, rows: Rows, batch_size: int, views: ViewFunction) -> Generator[Bytes, None, None]:
        """Yield views of `rows`, `batch_size` at a time; closing the generator ends its thread.

        Raises:
            DataError: a row that the split does not have.
        """
        epoch = start_epoch(self._loader, rows, batch_size, self._all(views))
        try:
            yield from epoch
        finally:
            epoch.close()

    def _all(self, views: ViewFunction) -> ViewFunction:
        """Adapt `views` to what FFCV decodes, and to several workers."""

        def make(images: Bytes, rows: Rows) -> Bytes:
            if self._drop_channels:  # it decodes grey images to three equal channels
                images = np.ascontiguousarray(images[..., :1])
            if self._pool is None or len(rows) < self._workers:
                return views(images, rows)
            parts = np.array_split(np.arange(len(rows)), self._workers)
            made = self._pool.map(lambda part: views(images[part[0] : part[-1] + 1], rows[part]), parts)
            return np.concatenate(list(made))

        return make
