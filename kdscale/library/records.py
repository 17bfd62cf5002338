"""A teacher's answers on disk, for training loops and data loaders of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdscale.api import Outputs
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import decode
from kdscale.errors import CacheError

__all__ = ["TeacherCache"]

Rows = int | slice | Sequence[int] | NDArray[np.integer] | Tensor


class TeacherCache:
    """The answers of one teacher to the rows of a train set, under each of the cache's views.

    Rows are row numbers of the full train set; what a view of a row is, `kdscale.data` makes of (view seed, view, row).
    It may be given to the workers of a data loader, forked or spawned: each opens its own maps.

    Args:
        folder: of the cache.
    """

    def __init__(self, folder: CacheFolder) -> None:
        self._folder, self._reader = folder, CacheReader(folder)
        self.layout = Layout.of(folder.manifest.identity["record"])

    @classmethod
    def open(cls, path: str | Path) -> TeacherCache:
        """Open a cache by its folder, or by the beginning of its digest in its place: `runs/caches/ab12`.

        Raises:
            CacheError: there is no such cache, several are meant, or it cannot be read.
        """
        path = Path(path).expanduser()
        found = [path] if path.is_dir() else sorted(p for p in path.parent.glob(f"{path.name}*") if p.is_dir())
        if len(found) != 1:
            there = ", ".join(p.name for p in found or sorted(path.parent.glob("*/"))) or "none"
            raise CacheError(f"{path} is {'no cache' if not found else 'not one cache alone'}; there are: {there}")
        return cls(CacheFolder.open(found[0]))

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return type(self).open, (self.path,)

    def __repr__(self) -> str:
        kept = self.layout.kind if not self.layout.k else f"top {self.layout.k}"
        return (
            f"TeacherCache({str(self.path)!r}: {len(self):,} rows x {self.views} views, {self.classes} classes, {kept})"
        )

    def __len__(self) -> int:
        return self._folder.manifest.rows

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._folder.path

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row numbers that it holds (N,), ascending."""
        return self._folder.rows

    @property
    def views(self) -> int:
        """How many views of each row."""
        return self._folder.manifest.views

    @property
    def classes(self) -> int:
        """How many classes the teacher tells apart."""
        return self.layout.classes

    def __getitem__(self, place: tuple[Rows, int]) -> Tensor:
        """Logits of rows under a view: `cache[rows, view]`.

        Args:
            place: one row number or several (B,), and the view's number.

        Returns:
            Float32 logits (B, C), or (C,) of one row, in memory of their own.

        Raises:
            CacheMiss: a row, view or block that is not there.
            CacheCorrupt: a block's bytes do not match.
            CacheError: the records hold the largest logits alone: `answers` completes them.
        """
        rows, view = place
        if self.layout.kind == "topk":
            raise CacheError(
                f"{self.path} holds the {self.layout.k} largest logits of {self.classes}: ask for "
                "answers(rows, view, labels), which completes them"
            )
        logits = self.answers(rows, view).logits
        return logits[0] if isinstance(rows, int | np.integer) else logits

    def answers(self, rows: Rows, view: int, labels: Tensor | None = None) -> Outputs:
        """The teacher's answers as a loss of kdscale takes them: logits, and `pooled` features where they are kept.

        Args:
            rows: one row number or several (B,).
            view: number of the view.
            labels: of the rows (B,), where only the largest logits are kept: a record holds the label's as well.

        Raises:
            CacheMiss, CacheCorrupt: as `cache[rows, view]`.
            ShapeError: labels are missing.
        """
        chosen = self._numbers(rows)
        records = torch.from_numpy(self._reader.gather(chosen, int(view)))
        known = torch.zeros(len(chosen), dtype=torch.int64) if labels is None else labels
        if labels is None and self.layout.kind == "topk":
            raise CacheError("give labels: a record of the largest logits holds the label's beside them")
        return decode(records, self.layout, labels=known)

    def _numbers(self, rows: Rows) -> NDArray[np.int64]:
        if isinstance(rows, slice):
            return self.rows[rows]
        if isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        return np.atleast_1d(np.asarray(rows, np.int64))
