"""Records of a cache as columns of numbers: what the teacher said, with row, view and label beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.reader import CacheReader
from kdscale.data.loader import TrainViews
from kdscale.data.views import partner_rows
from kdscale.errors import CacheMiss, ConfigError

__all__ = ["Columns", "Selection", "columns_of", "decoded", "select", "shapes_of"]

Columns = dict[str, NDArray[Any]]
"""Name to (B, ...)."""
CHUNK_BYTES = 32_000_000
"""Records that are read at once take about so many bytes when decoded."""


@dataclass(frozen=True)
class Selection:
    """Which records of a cache: these rows (n,), ascending, under each of these views."""

    rows: NDArray[np.int64]
    views: range

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.rows) * len(self.views)


def select(folder: CacheFolder, view: int | None, rows: str | None) -> Selection:
    """Take up `--view` and `--rows`.

    Args:
        folder: of the cache.
        view: one of its views; None takes all.
        rows: such as `0:1000,5000`: row numbers of the train set and ranges of them; None takes all.

    Raises:
        ConfigError: there is no such view, or no such row.
        CacheMiss: some of these records are not there yet.
    """
    manifest = folder.manifest
    if view is not None and not 0 <= view < manifest.views:
        raise ConfigError(f"--view {view}: the views of {folder.path.name} are 0 to {manifest.views - 1}")
    views = range(manifest.views) if view is None else range(view, view + 1)
    found = Selection(folder.rows if rows is None else _rows(folder, rows), views)
    blocks = np.unique(folder.positions(found.rows) // manifest.block_rows)
    wanted = (np.array(views)[:, None] * manifest.blocks_per_view + blocks).ravel()
    missing = np.intersect1d(wanted, folder.missing())
    if len(missing):
        whole = [v for v in views if not len(np.intersect1d(v * manifest.blocks_per_view + blocks, missing))]
        instead = f"; --view {whole[0]} is whole" if whole else ""
        raise CacheMiss(
            f"{folder.path}: {len(missing):,} of {len(wanted):,} blocks are not there yet{instead}. The sweep's "
            "command fills them"
        )
    return found


def columns_of(
    folder: CacheFolder, layout: Layout, chosen: Selection, data: TrainViews | None
) -> Iterator[Columns]:  # fmt: skip
    """Read and decode chosen records, some blocks at once, in the order of (view, row).

    Args:
        folder: of the cache.
        layout: of its records.
        chosen: what is read.
        data: that the rows are of, for labels; None leaves those out.

    Raises:
        CacheCorrupt: a block does not match its checksum.
    """
    reader = CacheReader(folder)
    blocks = folder.positions(chosen.rows) // folder.manifest.block_rows
    each = sum(4 * max(1, math.prod(field.shape)) for field in layout.fields) + 24
    at_once = max(1, CHUNK_BYTES // (each * folder.manifest.block_rows))
    ends = np.flatnonzero(np.diff(blocks // at_once)) + 1
    for view in chosen.views:
        for rows in np.split(chosen.rows, ends):
            yield {
                "row": rows, "view": np.full(len(rows), view, np.int32), **_labels(layout, rows, view, data),
                **decoded(reader.gather(rows, view), layout),
            }  # fmt: skip


def decoded(records: NDArray[np.uint8], layout: Layout) -> Columns:
    """Take records (B, R) apart.

    Returns:
        `logits` (B, C) where all are kept. Else `index` and `logit` (B, K), largest first, `log_sum` (B, T) of
        exp(logit / temperature) over all classes, `target` (B) or (B, 2), and `drawn` (B, T * N). `pooled` (B, D).
        Logits are absolute, not beneath the row's largest; all of them float32.
    """
    parts = np.ascontiguousarray(records).view(layout.dtype)[:, 0]
    fields = parts.dtype.names or ()
    pooled = {"pooled": parts["pooled"].astype(np.float32)} if layout.pooled else {}
    if layout.kind == "dense_fp32":
        return {"logits": parts["logit"].astype(np.float32), **pooled}
    tops = parts["row_max"].astype(np.float32)[:, None]
    if layout.kind == "dense":
        return {"logits": parts["logit"].astype(np.float32) + tops, **pooled}
    target = parts["target"].astype(np.float32)
    found: Columns = {}
    if layout.k:
        found |= {"index": _index(parts["index"]), "logit": parts["logit"].astype(np.float32) + tops}
    temperatures = np.array(layout.temperatures, np.float32)
    found["log_sum"] = parts["log_sum"].astype(np.float32) + tops / temperatures
    found["target"] = target + (tops if target.ndim > 1 else tops[:, 0])
    if "drawn" in fields:
        drawn = parts["drawn"]
        found["drawn"] = _index(drawn.reshape(len(parts), math.prod(drawn.shape[1:])))
    return found | pooled


# --------------------------------------------------------------------------- inner parts


def _rows(folder: CacheFolder, text: str) -> NDArray[np.int64]:
    """Rows that are held of those that a text names; each number alone must be."""
    chosen = np.zeros(len(folder.rows), np.bool_)
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            low, high = int(first or 0), int(last) if last else int(folder.rows[-1]) + 1 if colon else int(first) + 1
        except ValueError:
            raise ConfigError(f"--rows {text}: row numbers and ranges, for example 0:1000,5000") from None
        inside = (folder.rows >= low) & (folder.rows < high)
        if not inside.any():
            raise ConfigError(
                f"--rows {part.strip()}: {folder.path.name} holds none of it: {len(folder.rows):,} rows, "
                f"{folder.rows[0]} to {folder.rows[-1]}"
            )
        chosen |= inside
    return folder.rows[chosen]


def _labels(layout: Layout, rows: NDArray[np.int64], view: int, data: TrainViews | None) -> Columns:
    if data is None:
        return {}
    found = {"label": data.labels[rows].astype(np.int64)}
    if layout.mixing:
        found["label_b"] = data.labels[partner_rows(rows, view, data.scheme, data.rows)].astype(np.int64)
    return found


def _index(stored: NDArray[Any]) -> NDArray[Any]:
    return stored.astype(stored.dtype.newbyteorder("="))


def shapes_of(layout: Layout, *, labelled: bool) -> Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of one record's share of each column."""
    none = np.zeros((0, layout.record_bytes), np.uint8)
    labels = ["label", *(["label_b"] if layout.mixing else [])] if labelled else []
    found: Columns = {"row": np.zeros(0, np.int64), "view": np.zeros(0, np.int32)}
    found |= {name: np.zeros(0, np.int64) for name in labels}
    return {name: (column.dtype, column.shape[1:]) for name, column in (found | decoded(none, layout)).items()}
