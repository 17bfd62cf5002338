"""Filling a cache: each block once, in the slices that make its bytes its own, and nothing half-done after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale import ranks
from kdscale.api import Batch, Outputs
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import decode
from kdscale.cache.writer import BlockWriter
from kdscale.config.schema import DataConfig
from kdscale.data.loader import TrainViews
from kdscale.data.store import write_store
from kdscale.datasets.synthetic import Synthetic
from kdscale.train import filler
from kdscale.train.filler import Filler

ROWS, BLOCK, VIEWS = 70, 16, 2
LAYOUT = Layout(classes=10, kind="dense_fp32", pooled=3)
DATA = DataConfig.model_validate(
    {"name": "synthetic", "val_fraction": 0, "augment": {"flip": True}, "loader": "torch",
     "options": {"train_rows": ROWS, "test_rows": 10, "size": 8}}
)  # fmt: skip


class Fingers:
    """A fake teacher: its answer is a function of each picture alone."""

    name, provides = "fingers", frozenset({"logits", "features"})

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, batch: Batch) -> Outputs:
        self.seen.append(len(batch.rows))
        pixels = batch.images.float().flatten(1)
        return Outputs(torch.stack([pixels[:, n::10].sum(1) for n in range(10)], 1), [pixels[:, :3]])

    def fingerprint(self) -> str:
        return "fingers"


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> TrainViews:
    folder = tmp_path_factory.mktemp("store") / "store"
    return TrainViews(write_store(Synthetic(DATA), DATA, folder, "torch"), DATA)


@pytest.fixture
def cache(tmp_path: Path, views: TrainViews) -> CacheFolder:
    manifest = Manifest(
        identity={"test": "filler"}, rows=ROWS, rows_hash=hash_of_rows(views.rows), record_bytes=LAYOUT.record_bytes,
        block_rows=BLOCK, shard_records=2 * BLOCK, views=VIEWS,
    )  # fmt: skip
    return CacheFolder.create(tmp_path, manifest, views.rows)


Making = Callable[..., Filler]


@pytest.fixture
def filling(cache: CacheFolder, views: TrainViews) -> Making:
    def make(teacher: Fingers | None = None, stopped: Callable[[], bool] = lambda: False) -> Filler:
        return Filler(cache, LAYOUT, teacher or Fingers(), views, torch.device("cpu"), stopped)

    return make


def test_every_record_is_the_teachers_answer_to_its_view(
    filling: Making, cache: CacheFolder, views: TrainViews
) -> None:
    whole = filling()
    assert whole.fill(range(cache.manifest.blocks))
    assert whole.computed == cache.manifest.blocks == 10
    reader = CacheReader(cache)
    for view in range(VIEWS):
        rows = views.rows[::-3].copy()
        (batch,) = views.batches([rows], view)
        found = decode(torch.from_numpy(reader.gather(rows, view)), LAYOUT, labels=batch.labels)
        wanted = Fingers()(batch)
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.features[0], wanted.features[0].half().float())


def test_a_block_is_answered_in_pieces_of_one_length(filling: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of a view too: it has 6 rows of its own, and is padded."""
    monkeypatch.setattr(filler, "SLICE_ON_CPU", 8)
    teacher = Fingers()
    assert filling(teacher).fill([4])
    assert teacher.seen == [8, 8]
    monkeypatch.setattr(filler, "SLICE_ON_CPU", 7)  # that does not divide a block
    teacher = Fingers()
    assert filling(teacher).fill([9])
    assert teacher.seen == [16]


def test_what_is_there_is_left_alone(filling: Making, cache: CacheFolder) -> None:
    assert filling().fill([0, 3])
    rest = filling()
    assert rest.fill(range(cache.manifest.blocks))
    assert rest.computed == cache.manifest.blocks - 2


def test_a_cache_that_is_whole_needs_no_writer(filling: Making, cache: CacheFolder) -> None:
    """It may lie in a folder that may only be read."""
    assert filling().fill(range(cache.manifest.blocks))
    writer = BlockWriter(cache)  # a second one of this process is refused
    assert filling().fill(range(cache.manifest.blocks))
    assert filling().fill([])
    writer.close()


@pytest.mark.parametrize("after", range(22))
def test_asked_to_stop_it_says_so_and_holds_nothing(filling: Making, cache: CacheFolder, after: int) -> None:
    """At whichever look it is asked: a signal may come between two of them, and before the very last block."""
    looks = 0

    def stopped() -> bool:
        nonlocal looks
        looks += 1
        return looks > after

    stopping = filling(stopped=stopped)
    whole = stopping.fill(range(cache.manifest.blocks))
    assert whole == (not len(cache.missing()))
    assert stopping.computed == cache.manifest.blocks - len(cache.missing())
    assert filling().fill(range(cache.manifest.blocks))


def test_a_teacher_that_fails_leaves_no_lock(filling: Making, cache: CacheFolder) -> None:
    class Failing(Fingers):
        def __call__(self, batch: Batch) -> Outputs:
            raise RuntimeError("out of fingers")

    with pytest.raises(RuntimeError, match="out of fingers"):
        filling(Failing()).fill(range(4))
    writer = BlockWriter(cache)
    assert all(writer.take(block) for block in range(4))
    writer.close()


@given(st.integers(0, 50), st.integers(1, 5))
def test_ranks_begin_with_what_is_theirs_and_leave_nothing_out(blocks: int, world: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "world", lambda: world)
        orders = []
        for rank in range(world):
            patch.setattr(ranks, "rank", lambda rank=rank: rank)
            orders.append(filler._own_first(range(blocks)))
    assert all(sorted(order) == list(range(blocks)) for order in orders)
    firsts = [order[: len(range(rank, blocks, world))] for rank, order in enumerate(orders)]
    assert sorted(block for own in firsts for block in own) == list(range(blocks))


def test_padding_repeats_the_last_row() -> None:
    assert filler._padded(np.array([3, 5]), 4).tolist() == [3, 5, 5, 5]
