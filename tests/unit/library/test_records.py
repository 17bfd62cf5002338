"""A cache's records for data loaders of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kdscale as kd
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.cache.records import decode, encode
from kdscale.cache.writer import BlockWriter
from kdscale.errors import CacheError, CacheMiss

ROWS = np.arange(3, 303, 3)
CLASSES, BLOCK = 10, 16


def logits_of(view: int) -> Tensor:
    return torch.randn(len(ROWS), CLASSES, generator=torch.Generator().manual_seed(view))


def labels() -> Tensor:
    return torch.from_numpy(ROWS) % CLASSES


def filled(tmp_path: Path, layout: Layout) -> kd.TeacherCache:
    manifest = Manifest(
        {"record": layout.document(), "teacher": "t"},
        len(ROWS),
        hash_of_rows(ROWS),
        layout.record_bytes,
        BLOCK,
        BLOCK * 4,
        2,
    )
    folder = CacheFolder.create(tmp_path, manifest, ROWS)
    writer = BlockWriter(folder)
    for block in range(manifest.blocks):
        view, rows = block // manifest.blocks_per_view, folder.rows_of(block)
        at = np.searchsorted(ROWS, rows)
        records = encode(logits_of(view)[at], layout, labels=labels()[at], rows=torch.tensor(rows), view=view).numpy()
        assert writer.take(block)
        writer.write(block, records)
    writer.close()
    return kd.TeacherCache.open(folder.path)


def test_rows_in_any_form_and_order(tmp_path: Path) -> None:
    cache = filled(tmp_path, Layout(CLASSES, "dense_fp32"))
    assert (len(cache), cache.views, cache.classes) == (100, 2, 10)
    chosen = [9, 3, 300]
    wanted = logits_of(1)[[2, 0, 99]]
    for rows in (chosen, np.array(chosen), torch.tensor(chosen)):
        assert torch.equal(cache[rows, 1], wanted)
    assert torch.equal(cache[9, 1], wanted[0])
    assert torch.equal(cache[:, 0], logits_of(0))


def test_the_largest_logits_are_completed_where_labels_are_given(tmp_path: Path) -> None:
    layout = Layout(CLASSES, "topk", k=3)
    cache = filled(tmp_path, layout)
    with pytest.raises(CacheError, match="the 3 largest logits of 10: ask for answers"):
        cache[ROWS[:4], 0]
    with pytest.raises(CacheError, match="give labels"):
        cache.answers(ROWS[:4], 0)
    found = cache.answers(ROWS[:4], 0, labels()[:4]).logits
    records = encode(logits_of(0)[:4], layout, labels=labels()[:4], rows=torch.from_numpy(ROWS[:4]), view=0)
    assert torch.equal(found, decode(records, layout, labels=labels()[:4]).logits)


def test_what_it_does_not_hold_is_told(tmp_path: Path) -> None:
    cache = filled(tmp_path, Layout(CLASSES, "dense"))
    with pytest.raises(CacheMiss, match="row 4"):
        cache[[3, 4], 0]
    with pytest.raises(CacheMiss, match="view 2: its views are 0 to 1"):
        cache[[3], 2]
    with pytest.raises(CacheError, match=f"is no cache; there are: {cache.path.name}"):
        kd.TeacherCache.open(tmp_path / "none")
    assert kd.TeacherCache.open(tmp_path / cache.path.name[:4]).path == cache.path


class Answered(Dataset[Tensor]):
    """A user's own data set beside a teacher's answers."""

    def __init__(self, cache: kd.TeacherCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> Tensor:
        return self.cache[int(self.cache.rows[index]), 1]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader_read_it(tmp_path: Path, start: str) -> None:
    cache = filled(tmp_path, Layout(CLASSES, "dense_fp32"))
    assert cache[3, 0].shape == (10,), "its maps are open already"
    loader = DataLoader(Answered(cache), batch_size=50, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat([*loader]), logits_of(1))
