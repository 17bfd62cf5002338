"""The teacher caches of a running stage: opened, filled before they are read, mended where they are damaged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale import ranks
from kdscale.api import Batch, Teacher
from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import BlockWriter
from kdscale.config.schema import DataConfig, StageSpec
from kdscale.data.loader import TrainLoader, TrainViews
from kdscale.data.split import carve
from kdscale.data.store import Store
from kdscale.data.views import Rows
from kdscale.errors import CacheError
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.teachers.cached import CachedTeacher
from kdscale.train.filler import Filler

__all__ = ["RecordsAhead", "TeacherCache", "create_cache", "open_caches"]

WINDOW = 16
"""Batches whose records are read at once: a call costs much more than its rows, and stops training for a moment."""
Records = dict[str, Tensor]
"""Of one batch, (B, R) by teacher."""
log = logging.getLogger(__name__)


@dataclass
class TeacherCache:
    """One cached teacher of a stage.

    Attributes:
        live: the network itself, to evaluate by, and to make records where they are missing.
        fills: whether this stage makes its records itself, view by view.
    """

    role: str
    need: CacheNeed
    reader: CacheReader
    live: Teacher
    views: TrainViews
    device: torch.device
    fills: bool

    @property
    def folder(self) -> CacheFolder:
        """Where its records lie."""
        return self.reader.folder

    def teacher(self) -> CachedTeacher:
        """The teacher that training asks."""
        return CachedTeacher(self.role, self.reader, self.need.layout, self.device, self._mend)

    def fill_view(self, view: int, stopped: Callable[[], bool], told: Callable[[], None]) -> bool:
        """Make the records of a view that are not there; called by all ranks. False when asked to stop."""
        if not self.fills:
            return True
        whole = self._filler(stopped).fill(self.folder.blocks_of_view(view), told)
        return not ranks.max_(torch.tensor(int(not whole))).item()

    def _filler(self, stopped: Callable[[], bool] = lambda: False) -> Filler:
        return Filler(self.folder, self.need.layout, self.live, self.views, self.device, stopped)

    def _mend(self, batch: Batch, known: CacheError) -> None:
        """Make anew what is damaged or missing of a batch's blocks, where the cache may be written."""
        if not self.folder.writable:
            raise known
        log.warning("%s: %s; its records are made anew", self.role, known)
        manifest = self.folder.manifest
        blocks = np.unique(self.folder.positions(batch.rows.cpu().numpy()) // manifest.block_rows)
        mine = [int(block) + batch.view * manifest.blocks_per_view for block in blocks]
        writer = BlockWriter(self.folder)
        try:
            for block in mine:
                writer.discard(block)
        finally:
            writer.close()
        self._filler().fill(mine)
        for block in mine:
            self.reader.forget(block)


class RecordsAhead:
    """A loader whose batches carry the records of their rows, read beside training.

    Args:
        loader: of the stage.
        teachers: that answer from caches.
    """

    def __init__(self, loader: TrainLoader, teachers: Sequence[CachedTeacher]) -> None:
        self._loader, self._teachers = loader, teachers
        self.steps_per_epoch = loader.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """As the loader's; records are one to two windows ahead of the consumer."""
        rows, view = self._loader.rows(epoch, start), self._loader.view_of(epoch)
        with ThreadPoolExecutor(1, "records") as pool, closing(self._loader.epoch(epoch, start)) as batches:
            for batch, records in zip(batches, self._ahead(pool, rows, view), strict=True):
                yield replace(batch, records=records or self._mended(batch))

    def _ahead(self, pool: ThreadPoolExecutor, rows: list[Rows], view: int) -> Generator[Records, None, None]:
        windows = [rows[first : first + WINDOW] for first in range(0, len(rows), WINDOW)]
        ahead = deque(pool.submit(self._read, window, view) for window in windows[:2])
        for coming in [*windows[2:], None, None][: len(windows)]:
            found = ahead.popleft().result()
            if coming is not None:
                ahead.append(pool.submit(self._read, coming, view))
            yield from found

    def _read(self, window: list[Rows], view: int) -> list[Records]:
        """The records of some batches, each batch's by teacher: none where some cannot be read."""
        sizes = [len(rows) for rows in window]
        try:
            found = {t.name: torch.split(t.records(np.concatenate(window), view), sizes) for t in self._teachers}
        except CacheError:
            return [{}] * len(window)
        return [{name: parts[index] for name, parts in found.items()} for index in range(len(window))]

    def _mended(self, batch: Batch) -> Records:
        """Records that could not be read ahead, made anew if need be: networks compute on this thread alone."""
        return {teacher.name: teacher.whole(batch) for teacher in self._teachers}


def open_caches(
    definition: Mapping[str, Any], root: Root, consumed: Mapping[str, str], store: Store
) -> dict[str, tuple[CacheNeed, CacheReader, bool]]:
    """The caches that a student reads, by teacher: what was asked for, a reader, and whether the stage fills it.

    Args:
        definition: of the student.
        root: where caches are.
        consumed: hash of the weights of each teacher.
        store: the student's data.

    Raises:
        CacheMiss, CacheStale: there is none, or none that was made from just these weights, data and views.
    """
    found = {}
    for role, entry in definition.get("caches", {}).items():
        need, fills = CacheNeed.of(entry["need"]), not entry["filled_by"]
        if fills:
            data = StageSpec.model_validate(definition["spec"]).data
            folder = create_cache(root, need, consumed[role], store, data)
        else:
            folder = root.needed_cache(need.identity(consumed[role]))
        found[role] = (need, CacheReader(folder), fills)
    return found


def create_cache(root: Root, need: CacheNeed, weights: str, store: Store, data: DataConfig) -> CacheFolder:
    """The cache that a need describes, begun where there is none; a whole one of a root to reuse from serves as well.

    Args:
        root: where it lies, or will.
        need: what it must hold.
        weights: hash of the teacher's.
        store: the data.
        data: the data section of whoever reads it; its limit is the need's.

    Raises:
        CacheError: it cannot be written, or something else lies in its place.
    """
    identity = need.identity(weights)
    known = root.cache(identity)
    if known is not None and known.manifest.views >= need.views:
        whole = not len(known.missing(0, need.views * known.manifest.blocks_per_view))
        if whole or known.writable:
            return known
    rows = carve(store.labels("train"), data.model_copy(update={"limit": need.limit})).train
    bytes_each = need.layout.record_bytes
    shard = max(1, need.shard_mb * 1_000_000 // (bytes_each * need.block_rows)) * need.block_rows
    manifest = Manifest(
        identity=identity, rows=len(rows), rows_hash=hash_of_rows(rows), record_bytes=bytes_each,
        block_rows=need.block_rows, shard_records=shard, views=need.views,
    )  # fmt: skip
    return CacheFolder.create(root.caches, manifest, rows)
