"""Plans beside caches that lie there already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.config.load import load
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.plan import make_plan

TEXT = """
name: beside
data: {name: synthetic, val_fraction: 0.1, options: {train_rows: 200, size: 16}}
train: {epochs: 2, batch_size: 32, precision: fp32}
engine: {processes: 1}
stages:
  teacher:
    student: {model: resnet_cifar, depth: 8, widths: [4, 4, 4]}
    losses: [{name: ce}]
  student:
    student: {model: resnet_cifar, depth: 8, widths: [4, 4, 4]}
    teachers: {t: {from: teacher, cache: {}}}
    losses: [{name: kd}]
"""


def need_of(root: Root, file: Path, cache: str) -> CacheNeed:
    """What the student asks of its teacher's cache."""
    plan = make_plan(load(file, [f"stages.student.teachers.t.cache={cache}"]), root)
    [student] = [stage for stage in plan.stages.values() if stage.name == "student"]
    return CacheNeed.of(student.definition["caches"]["t"]["need"])


@pytest.mark.parametrize(
    ("there", "wanted"), [("{record: dense}", "{record: topk, k: 2}"), ("{record: topk, k: 2}", "{record: dense}")]
)
def test_a_cache_of_another_kind_of_record_is_no_hindrance(tmp_path: Path, there: str, wanted: str) -> None:
    file, root, rows = tmp_path / "x.yaml", Root(tmp_path / "runs"), np.arange(180)
    file.write_text(TEXT)
    expected, known = need_of(root, file, wanted), need_of(root, file, there)
    record_bytes = known.layout.record_bytes
    manifest = Manifest(
        identity=known.identity("aa"), rows=180, rows_hash=hash_of_rows(rows), record_bytes=record_bytes,
        block_rows=known.block_rows, shard_records=known.block_rows, views=known.views,
    )  # fmt: skip
    CacheFolder.create(root.caches, manifest, rows)
    assert need_of(root, file, wanted) == expected
