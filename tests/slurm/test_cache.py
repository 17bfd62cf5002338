"""Teacher caches on a real cluster: filled by an array, over a node's death, with the bytes of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.cache.folder import CacheFolder
from tests.matrix import MATRIX
from tests.slurm.conftest import Drill, Make, control, wait_until

SLOW_FILL = (
    "stages.teacher.student={model: resnet_cifar, depth: 32}", "stages.teacher.train.epochs=1", "data.options.size=24",
    "stages.student.teachers.teacher.cache={views: 2, parts: 2, block_rows: 16}", "train.epochs=2",
    "engine.processes=2",  # of a thread each, here as there: the same weights
)  # fmt: skip


def cache_of(drill: Drill) -> CacheFolder | None:
    found = list((drill.root / "caches").glob("[0-9a-f]*/manifest.json"))
    return CacheFolder.open(found[0].parent) if found else None


def files(folder: CacheFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


@pytest.mark.parametrize("kill", [False, pytest.param(True, marks=MATRIX)])
def test_an_array_fills_it_though_a_node_dies(drill: Make, tmp_path: Path, kill: bool) -> None:
    away, here = drill("away"), drill("here", cluster="local")
    assert here.sweep(*SLOW_FILL).returncode == 0
    away.sweep(*SLOW_FILL, detach=True)
    if kill:
        wait_until(lambda: (cache := cache_of(away)) is not None and len(cache.missing()) < 70, 120)
        control("kill-node", "n1")
    away.becomes("student", "done", 240)
    tasks = [task["job"] for task in away.jobs() if "cache" in task["stage"]]
    assert sorted(job.partition("_")[2] for job in tasks) == ["0", "1"]
    assert {len(away.state(f"teacher-cache-{part}of2")["attempts"]) for part in (1, 2)} <= ({1, 2} if kill else {1})
    filled, wanted = cache_of(away), cache_of(here)
    assert filled is not None
    assert wanted is not None
    assert files(filled) == files(wanted)
    assert away.weights("student") == here.weights("student")
    if kill:
        control("up")
