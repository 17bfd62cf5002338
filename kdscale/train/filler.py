"""Making records: a teacher answers canonical blocks of rows, which are written one by one.

A block is always computed in the same slices of the same rows, so its bytes do not depend on who makes it, in which
order, after which kill. Answers to 16 rows or more do not depend on how many stand beside them (measured, fp32 and
bf16, 1 and 2 threads: docs/decisions.md), so a live teacher answers a student's batches with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdscale import ranks
from kdscale.api import Batch, DatasetInfo, Teacher
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.records import encode
from kdscale.cache.writer import BlockWriter
from kdscale.config.schema import StageSpec
from kdscale.data.loader import TrainViews
from kdscale.pipeline.assemble import Parent, image_size, teacher_network
from kdscale.teachers.network import NetworkTeacher

__all__ = ["Filler"]

SLICE_ON_CPU = 128
"""Rows that are answered at once on a CPU: 1.3 to 2.2 times as fast as 512, whose activations leave its caches."""
MOST_AT_ONCE = 8
"""Blocks that one process takes together, to read their images in one go."""
ASK_AGAIN_S = 0.1
"""How often to look whether another process is done with a block."""


class Filler:
    """Fills one cache.

    Args:
        folder: of the cache.
        layout: of its records.
        teacher: the live network, at the cache's precision.
        views: of the data that it answers for.
        device: of the teacher.
        stopped: polled between blocks; True leaves what is not begun.
    """

    def __init__(
        self, folder: CacheFolder, layout: Layout, teacher: Teacher, views: TrainViews, device: torch.device,
        stopped: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._folder, self._layout, self._teacher, self._views = folder, layout, teacher, views
        self._device, self._stopped = device, stopped
        self.computed = 0
        """Blocks that this process has made."""

    @classmethod
    def of_stage(
        cls, folder: CacheFolder, definition: Mapping[str, Any], teacher: Parent, views: TrainViews,
        device: torch.device, stopped: Callable[[], bool],
    ) -> Filler:  # fmt: skip
        """One whose teacher is loaded as the cache wants it: with its taps, precision and folding.

        Args:
            folder: of the cache.
            definition: of any stage that fills or reads it, for the data and its size.
            teacher: the producing stage, with its weights.
            views: of the data that it answers for.
            device: of the teacher.
            stopped: polled between blocks.
        """
        identity = folder.manifest.identity
        layout = Layout.of(identity["record"])
        spec, info = StageSpec.model_validate(definition["spec"]), DatasetInfo.of(definition["data"]["info"])
        network = teacher_network(teacher, info, image_size(spec, info), ["pooled"] if layout.pooled else [])
        live = NetworkTeacher("teacher", network, device=device, precision=identity["precision"], fold=identity["fold"])
        return cls(folder, layout, live, views, device, stopped)

    def fill(self, blocks: Sequence[int], told: Callable[[], None] = lambda: None) -> bool:
        """Make every block that is not there; wait for those that another process is at.

        Called by several processes at once, each takes what no other has taken.

        Args:
            blocks: numbers, ascending.
            told: called after each block, and while waiting.

        Returns:
            Whether all are there; False when it was asked to stop.
        """
        absent = set(self._folder.missing(blocks[0], blocks[-1] + 1).tolist()) if blocks else set()
        left = [block for block in _own_first(blocks) if block in absent]
        if not left:  # nor is there anything to be written: the folder may be somebody else's
            return True
        writer = BlockWriter(self._folder)
        try:
            while left and not self._stopped():
                taken, left = self._take(writer, left)
                left = [*self._make(writer, taken, told), *left]
                if not taken and left:
                    told()
                    time.sleep(ASK_AGAIN_S)
        finally:
            writer.close()
        return not left

    def _take(self, writer: BlockWriter, left: list[int]) -> tuple[list[int], list[int]]:
        """Take some blocks of one view; returns them, and what is left: not looked at, or in other hands."""
        most = max(1, min(MOST_AT_ONCE, len(left) // (4 * ranks.world())))
        taken: list[int] = []
        busy: list[int] = []
        for at, block in enumerate(left):
            if len(taken) == most or (taken and self._view(block) != self._view(taken[0])):
                return taken, [*left[at:], *busy]
            if self._folder.has(block):
                continue
            (taken if writer.take(block) else busy).append(block)
        return taken, [block for block in busy if not self._folder.has(block)]

    def _view(self, block: int) -> int:
        return block // self._folder.manifest.blocks_per_view

    def _make(self, writer: BlockWriter, taken: list[int], told: Callable[[], None]) -> list[int]:
        """Compute and write blocks of one view, one while the next is computed; returns those that a stop has left."""
        if not taken:
            return []
        waiting = list(taken)
        writing: Future[None] | None = None
        try:
            with ThreadPoolExecutor(1, "write") as pool, closing(self._answers(taken)) as answers:
                for block in taken:
                    if self._stopped():
                        break
                    records = next(answers)
                    if writing is not None:
                        writing.result()
                    writing = pool.submit(writer.write, block, records)
                    waiting.remove(block)
                    self.computed += 1
                    told()
                if writing is not None:
                    writing.result()
        finally:
            for block in waiting:
                writer.release(block)
        return waiting

    def slices_of(self, block: int) -> list[NDArray[np.int64]]:
        """The rows of a block as they are answered: pieces of one length, padded behind the last row."""
        size = self._folder.manifest.block_rows
        width = SLICE_ON_CPU if self._device.type == "cpu" and size % SLICE_ON_CPU == 0 else size
        return list(_padded(self._folder.rows_of(block), size).reshape(-1, width))

    def answers(self, slices: Sequence[NDArray[np.int64]], view: int) -> Generator[Tensor, None, None]:
        """The records (B, R) of each of some slices under one view, computed now."""
        with closing(self._views.batches(slices, view)) as batches:
            yield from map(self._encoded, batches)

    def _answers(self, blocks: Sequence[int]) -> Generator[NDArray[np.uint8], None, None]:
        """The records of each block, without those of its padding."""
        pieces = [self.slices_of(block) for block in blocks]
        with closing(self.answers([piece for own in pieces for piece in own], self._view(blocks[0]))) as answers:
            for block, own in zip(blocks, pieces, strict=True):
                encoded = [next(answers) for _ in own]
                yield torch.cat(encoded)[: len(self._folder.rows_of(block))].numpy()

    def _encoded(self, batch: Batch) -> Tensor:
        moved = batch.to(self._device)
        answer = self._teacher(moved)
        return encode(
            answer.logits.float(), self._layout, labels=moved.labels, rows=moved.rows, view=batch.view,
            labels_b=moved.labels_b, pooled=answer.features[0].float() if self._layout.pooled else None,
        )  # fmt: skip


def _own_first(blocks: Iterable[int]) -> list[int]:
    """This rank's share of the blocks, then the others', so that ranks meet only at the end."""
    rank, world = ranks.rank(), ranks.world()
    shares: list[list[int]] = [[] for _ in range(world)]
    for at, block in enumerate(blocks):
        shares[at % world].append(block)
    return [block for turn in range(world) for block in shares[(rank + turn) % world]]


def _padded(rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Rows of a block, the last one again and again where they do not fill it."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
