"""A teacher that answers from its records on disk, and lets somebody mend those that are missing or damaged.

Source: none; it answers what the teacher answered.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from kdscale.api import Batch, Outputs
from kdscale.cache.layout import Layout
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import decode
from kdscale.errors import CacheError

__all__ = ["CachedTeacher"]


class CachedTeacher:
    """Satisfies `api.Teacher`: every answer is decoded from a record, whoever computed that.

    Args:
        name: what the stage calls it.
        reader: of its cache.
        layout: of the records.
        device: where it answers.
        mend: given a batch whose records cannot be read; makes them anew, or raises what it was given.
    """

    def __init__(
        self, name: str, reader: CacheReader, layout: Layout, device: torch.device,
        mend: Callable[[Batch, CacheError], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.provides = frozenset({"logits", "features"} if layout.pooled else {"logits"})
        self._reader, self._layout, self._device, self._mend = reader, layout, device, mend

    def __call__(self, batch: Batch) -> Outputs:
        """Answer a batch on its device."""
        records = batch.records[self.name] if self.name in batch.records else self.whole(batch)
        return decode(
            records.to(self._device, non_blocking=True), self._layout,
            labels=batch.labels, labels_b=batch.labels_b, lam=batch.lam,
        )  # fmt: skip

    def records(self, rows: NDArray[np.int64], view: int) -> UInt8[Tensor, "B R"]:
        """Read the records of rows on the host; may run beside training. Raises: CacheMiss, CacheCorrupt."""
        return torch.from_numpy(self._reader.gather(rows, view))

    def whole(self, batch: Batch) -> UInt8[Tensor, "B R"]:
        """Those of a batch on the host, made anew where they cannot be read. Raises: CacheMiss, CacheCorrupt."""
        rows = batch.rows.cpu().numpy()
        try:
            return self.records(rows, batch.view)
        except CacheError as error:
            self._mend(batch, error)
        return self.records(rows, batch.view)

    def fingerprint(self) -> str:
        """Digest of the cache: what decides every record."""
        return self._reader.folder.manifest.digest
