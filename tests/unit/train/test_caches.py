"""Which cache a student gets, or why none; and how the records of its batches are read."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale.api import Batch
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.data.loader import TrainLoader
from kdscale.errors import CacheCorrupt, CacheMiss, CacheStale
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.teachers.cached import CachedTeacher
from kdscale.train.caches import WINDOW, RecordsAhead

ROWS = np.arange(20)
NEED = CacheNeed(
    teacher="a" * 64, selector="last",
    data={
        "fingerprint": "f00d", "views": {"size": 8, "view_seed": 0, "augment": {"flip": True}},
        "split": {"val_fraction": 0.1, "split_seed": 0, "limit": None},
    },
    layout=Layout(classes=300, kind="topk", k=5, temperatures=(1.0, 4.0)), precision="bf16", fold=True, block_rows=16,
    views=2, shard_mb=1,
)  # fmt: skip

Fill = Callable[..., CacheFolder]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Begin a cache under a root."""

    def make(need: CacheNeed = NEED, weights: str = "w", root: str = "runs") -> CacheFolder:
        manifest = Manifest(
            identity=need.identity(weights), rows=20, rows_hash=hash_of_rows(ROWS), block_rows=16, shard_records=32,
            record_bytes=need.layout.record_bytes, views=need.views,
        )  # fmt: skip
        return CacheFolder.create(tmp_path / root / "caches", manifest, ROWS)

    return make


def changed(**data: Any) -> CacheNeed:
    return replace(NEED, data={**NEED.data, **data})


@pytest.mark.parametrize(
    ("asked", "weights", "line"),
    [
        (NEED, "retrained", "teacher.weights: expected retrained, found w"),
        (changed(fingerprint="beef"), "w", "data.fingerprint: expected beef, found f00d"),
        (changed(views={**NEED.data["views"], "view_seed": 1}), "w", "data.views.view_seed: expected 1, found 0"),
        (changed(views={**NEED.data["views"], "augment": {"crop": 4}}), "w", "data.views.augment.crop: expected 4"),
        (changed(split={**NEED.data["split"], "limit": 10}), "w", "data.split.limit: expected 10, found null"),
        (replace(NEED, precision="fp32"), "w", "precision: expected fp32, found bf16"),
        (replace(NEED, fold=False), "w", "fold: expected false, found true"),
        (
            replace(NEED, layout=replace(NEED.layout, temperatures=(1.0, 2.0))), "w",
            "record.temperatures.1: expected 2.0, found 4.0",
        ),
        (replace(NEED, layout=Layout(classes=300, kind="dense")), "w", "record.kind: expected dense, found topk"),
    ],
)  # fmt: skip
def test_another_cache_of_the_same_teacher_is_stale_with_every_line_that_differs(
    fill: Fill, tmp_path: Path, asked: CacheNeed, weights: str, line: str
) -> None:
    fill()
    with pytest.raises(CacheStale) as caught:
        Root(tmp_path / "runs").needed_cache(asked.identity(weights))
    assert line in str(caught.value).replace('"', "")
    assert "give the sweep's command again, which fills it" in str(caught.value)


def test_no_cache_of_the_teacher_at_all_is_a_miss(fill: Fill, tmp_path: Path) -> None:
    fill(replace(NEED, teacher="b" * 64))
    with pytest.raises(CacheMiss, match="give the sweep's command again"):
        Root(tmp_path / "runs").needed_cache(NEED.identity("w"))


def test_what_lies_in_its_place_must_be_it(fill: Fill, tmp_path: Path) -> None:
    other = fill(replace(NEED, precision="fp32"))
    right = fill()
    (right.path / "manifest.json").write_bytes((other.path / "manifest.json").read_bytes())
    with pytest.raises(CacheStale, match="precision"):
        Root(tmp_path / "runs").needed_cache(NEED.identity("w"))


def test_the_root_with_the_most_of_it_serves_and_another_is_not_written(fill: Fill, tmp_path: Path) -> None:
    fill(root="lab")
    lab_alone = Root(tmp_path / "runs", [tmp_path / "lab"]).needed_cache(NEED.identity("w"))
    assert lab_alone.path.parent.parent.name == "lab"
    assert not lab_alone.writable
    fill()
    both = Root(tmp_path / "runs", [tmp_path / "lab"]).needed_cache(NEED.identity("w"))
    assert both.path.parent.parent.name == "runs"
    assert both.writable


def test_a_cache_that_is_taken_out_is_gone_at_once(fill: Fill, tmp_path: Path) -> None:
    fill()
    root = Root(tmp_path / "runs")
    root.take_out_cache(NEED.identity("w"))
    assert root.cache(NEED.identity("w")) is None
    assert not [p for p in root.caches.iterdir() if p.is_dir()]
    root.take_out_cache(NEED.identity("w"))


# --------------------------------------------------------------------------- records of batches, read ahead

STEPS = 2 * WINDOW + 3


class MadeUpLoader(TrainLoader):
    """Batches of two rows; epoch n shows view n."""

    def __init__(self) -> None:
        self.steps_per_epoch = STEPS

    def view_of(self, epoch: int) -> int:
        return epoch

    def rows(self, epoch: int, start: int = 0) -> list[np.ndarray]:
        return [np.array([step, 10 * step + epoch]) for step in range(start, STEPS)]

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        for rows in self.rows(epoch, start):
            yield Batch(
                torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(2).long(), torch.from_numpy(rows), epoch
            )


@dataclass
class MadeUpTeacher(CachedTeacher):
    """Its records are the row and the view; rows in `lost` cannot be read before they are mended."""

    name: str
    lost: set[int] = field(default_factory=set)
    reads: int = 0
    mended: list[list[int]] = field(default_factory=list)

    def records(self, rows: np.ndarray, view: int) -> Tensor:
        self.reads += 1
        if self.lost & set(rows.tolist()):
            raise CacheCorrupt("lost", 0)
        return torch.from_numpy(np.stack([rows % 256, rows // 256, np.full_like(rows, view)], 1).astype(np.uint8))

    def whole(self, batch: Batch) -> Tensor:
        rows = batch.rows.numpy()
        if self.lost & set(rows.tolist()):
            self.mended.append(rows.tolist())
            self.lost.clear()
        return self.records(rows, batch.view)


def expected(rows: np.ndarray, view: int) -> Tensor:
    return MadeUpTeacher("").records(rows, view)


@pytest.mark.parametrize("start", [0, 1, WINDOW, 2 * WINDOW + 2, STEPS])
def test_every_batch_carries_the_records_of_its_rows_from_every_teacher(start: int) -> None:
    teachers = [MadeUpTeacher("a"), MadeUpTeacher("b")]
    batches = list(RecordsAhead(MadeUpLoader(), teachers).epoch(3, start))
    assert len(batches) == STEPS - start
    for batch, rows in zip(batches, MadeUpLoader().rows(3, start), strict=True):
        assert batch.rows.tolist() == rows.tolist()
        assert {name: read.tolist() for name, read in batch.records.items()} == {
            name: expected(rows, 3).tolist() for name in "ab"
        }


def test_reads_a_window_at_once_and_is_two_windows_ahead_at_most() -> None:
    teacher = MadeUpTeacher("a")
    batches = RecordsAhead(MadeUpLoader(), [teacher]).epoch(0)
    next(batches)
    batches.close()
    assert teacher.reads <= 3
    teacher.reads = 0
    list(RecordsAhead(MadeUpLoader(), [teacher]).epoch(0))
    assert teacher.reads == 3


def test_what_cannot_be_read_ahead_is_mended_where_training_runs() -> None:
    lost = int(MadeUpLoader().rows(0)[WINDOW + 1][0])
    teacher = MadeUpTeacher("a", {lost})
    batches = list(RecordsAhead(MadeUpLoader(), [teacher]).epoch(0))
    [rows] = teacher.mended
    assert lost in rows
    for batch in batches:
        assert batch.records["a"].tolist() == expected(batch.rows.numpy(), 0).tolist()
