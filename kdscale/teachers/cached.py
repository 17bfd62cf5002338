"""A teacher that answers from its records on disk, and lets somebody mend those that are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import UInt8
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

    def records(self, batch: Batch) -> UInt8[Tensor, "B R"]:
        """Read the records of a batch on the host; may run beside training. Raises: CacheMiss, CacheCorrupt."""
        return torch.from_numpy(self._reader.gather(batch.rows.cpu().numpy(), batch.view))

    def whole(self, batch: Batch, known: CacheError | None = None) -> UInt8[Tensor, "B R"]:
        """The same, after records that cannot be read were made anew.

        Args:
            batch: on the host.
            known: what an earlier look has found.

        Raises:
            CacheMiss, CacheCorrupt: they cannot be.
        """
        if known is None:
            try:
                return self.records(batch)
            except CacheError as error:
                known = error
        self._mend(batch, known)
        return self.records(batch)

    def fingerprint(self) -> str:
        """Digest of the cache: what decides every record."""
        return self._reader.folder.manifest.digest
