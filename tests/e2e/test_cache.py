"""Teacher caches in real sweeps: equal to live teachers, whoever fills them, whatever is killed or damaged."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from kdscale.cache.folder import CacheFolder
from kdscale.jobs.local import LocalRun
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.e2e.conftest import Make, Sandbox
from tests.e2e.test_kills import KillAt
from tests.matrix import LONG, MATRIX
from tests.plugins.drowsy import SLOW_STUDENT, SLOW_TEACHER
from tests.unit.checkpoint.disk import small_disk

CACHE = "stages.student.teachers.teacher.cache"
LIVE = ("stages.teacher.student.widths=[8,8,16]", "train.epochs=2")


def cached(**options: object) -> str:
    """An override that puts the cache on."""
    said = {"record": "dense_fp32", "block_rows": 64, "views": 2, **options}
    return f"{CACHE}={{{', '.join(f'{k}: {v}' for k, v in said.items())}}}"


def files(root: Root) -> dict[str, bytes]:
    """Everything that lies in the caches of a root, by name; the locks hold nothing."""
    return {str(p.relative_to(root.caches)): p.read_bytes() for p in root.caches.glob("[0-9a-f]*/*") if p.is_file()}


def cache_of(sandbox: Sandbox) -> CacheFolder:
    (path,) = sandbox.root.caches.glob("[0-9a-f]*")
    return CacheFolder.open(path)


class KillFill:
    """Sends a signal to workers of the fill stage when so many blocks are there."""

    def __init__(
        self, blocks: list[int], number: signal.Signals = signal.SIGKILL, only_rank: int | None = None
    ) -> None:
        self.blocks, self.number, self.only_rank = list(blocks), number, only_rank

    def __call__(self, local: LocalRun, sandbox: Sandbox) -> None:
        pids = local.workers().get("teacher-cache", [])
        if not self.blocks or not pids or not list(sandbox.root.caches.glob("[0-9a-f]*/blocks.bin")):
            return
        cache = cache_of(sandbox)
        if cache.manifest.blocks - len(cache.missing()) >= self.blocks[0]:
            self.blocks.pop(0)
            for rank, pid in enumerate(pids):
                if self.only_rank in (None, rank):
                    os.kill(pid, self.number)


@pytest.mark.parametrize(
    ("world", "augment"),
    [
        (1, ""),
        (2, "data.augment.mixup=0.4"),
        pytest.param(2, "", marks=MATRIX),
        pytest.param(1, "data.augment.mixup=0.4", marks=MATRIX),
        pytest.param(1, "data.augment.cutmix=1.0", marks=MATRIX),
        pytest.param(2, "data.augment.cutmix=1.0", marks=MATRIX),
    ],
)
def test_a_cached_teacher_gives_the_weights_of_a_live_one(sandbox: Make, world: int, augment: str) -> None:
    common = [f"engine.processes={world}", *LIVE, *([augment] if augment else [])]
    live, stored = sandbox("live", *common), sandbox("cached", *common, cached())
    assert set(live.run().values()) == set(stored.run().values()) == {"done"}
    assert stored.folder("teacher").digest == live.folder("teacher").digest
    assert stored.folder("student").digest != live.folder("student").digest
    assert _without_header(stored.weights("student")) == _without_header(live.weights("student"))
    assert stored.metrics("student") == live.metrics("student")
    assert not cache_of(stored).missing().size


def test_a_cache_is_the_same_bytes_from_any_number_of_ranks_killed_or_not(sandbox: Make) -> None:
    one = sandbox("one", cached(), *SLOW_TEACHER, *LIVE)
    assert set(one.run().values()) == {"done"}
    for name, world, disturb in [
        ("killed", 1, KillFill([3, 11])),
        ("one of two", 2, KillFill([5], only_rank=1)),
        *([("four", 4, None), ("asked", 2, KillFill([4], signal.SIGTERM))] if LONG else []),
    ]:
        other = _with_teacher_of(
            one, sandbox(name, cached(), *SLOW_TEACHER, *LIVE, f"stages.teacher.engine.processes={world}")
        )
        assert set(other.run(disturb).values()) == {"done"}
        assert other.folder("teacher-cache").state()["attempts"][-1]["world"] == world
        assert files(other.root) == files(one.root), name
        if disturb is not None:
            assert not disturb.blocks, name
            assert len(other.folder("teacher-cache").state()["attempts"]) >= 2, name


@pytest.mark.parametrize("world", [pytest.param(1, marks=MATRIX), 2])
def test_filled_on_use_it_is_the_same(sandbox: Make, world: int) -> None:
    ranks = (f"stages.student.engine.processes={world}", *SLOW_STUDENT)
    before = sandbox("stage", cached(pooled="true"), *LIVE, *ranks)
    during = sandbox("on_use", cached(pooled="true", fill="on_use"), *LIVE, *ranks)
    assert set(before.run().values()) == {"done"}
    assert "teacher-cache" not in {stage.name for stage in during.plan.stages.values()}
    kill = KillAt([8, 24], signal.SIGKILL)
    assert set(during.run(kill).values()) == {"done"}
    assert kill.killed == 2
    assert during.folder("student").digest == before.folder("student").digest
    assert files(during.root) == files(before.root)
    assert during.weights("student") == before.weights("student")
    assert during.metrics("student") == before.metrics("student")


@MATRIX
def test_a_student_of_a_cache_resumes_exactly(sandbox: Make) -> None:
    slow = (*SLOW_STUDENT, cached(record="topk", k=3, views=2), "train.epochs=3")
    calm, disturbed = sandbox("calm", *slow), sandbox("disturbed", *slow)
    assert set(calm.run().values()) == {"done"}
    kill = KillAt([8, 28], signal.SIGKILL)
    assert set(disturbed.run(kill).values()) == {"done"}
    assert kill.killed == 2
    assert disturbed.weights("student") == calm.weights("student")
    assert disturbed.metrics("student") == calm.metrics("student")


@pytest.mark.parametrize(
    "harm", ["flipped", *(pytest.param(h, marks=MATRIX) for h in ("truncated", "emptied", "removed"))]
)
def test_a_damaged_shard_is_noticed_and_mended_by_the_student(sandbox: Make, harm: str) -> None:
    calm = sandbox("calm", cached(), *LIVE)
    assert set(calm.run().values()) == {"done"}
    damaged = _with_teacher_of(calm, sandbox("damaged", cached(), *LIVE))
    shutil.copytree(calm.root.caches, damaged.root.caches)
    damaged = damaged.planned_again()
    assert "teacher-cache" not in {stage.name for stage in damaged.plan.todo}
    _damage(cache_of(damaged).shard(0), harm)
    assert set(damaged.run().values()) == {"done"}
    assert files(damaged.root) == files(calm.root)
    assert damaged.weights("student") == calm.weights("student")
    (log,) = damaged.folder("student").logs.glob("attempt1-rank0.log")
    assert "its records are made anew" in log.read_text()


def test_a_damaged_block_that_cannot_be_mended_names_file_block_and_mend(
    sandbox: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = sandbox("lab", cached(), *LIVE)
    assert set(lab.run().values()) == {"done"}
    shutil.rmtree(lab.folder("student").path)
    _damage(cache_of(lab).shard(0), "flipped")
    monkeypatch.setenv("KDSCALE_REUSE", str(lab.root.path))
    mine = sandbox("mine", cached(), *LIVE)
    shutil.rmtree(mine.root.path)
    mine = mine.planned_again()
    assert {stage.name for stage in mine.plan.todo} == {"student"}
    assert mine.run()["student"] == "failed"
    reason = mine.folder("student").state()["reason"]
    assert "records-00000.bin" in reason
    assert "block" in reason
    assert "cache.py verify" in reason


def test_a_cache_that_was_removed_is_filled_again_for_who_still_needs_it(sandbox: Make) -> None:
    first = sandbox("runs", cached(), *LIVE)
    assert set(first.run().values()) == {"done"}
    before = files(first.root)
    shutil.rmtree(first.root.caches)
    again = first.planned_again()
    assert not again.plan.todo  # all that read it are done
    shutil.rmtree(first.folder("student").path)
    again = first.planned_again()
    assert {stage.name for stage in again.plan.todo} == {"student", "teacher-cache"}
    assert set(again.run().values()) == {"done"}
    assert files(again.root) == before


@MATRIX
def test_fresh_fills_it_anew(sandbox: Make) -> None:
    first = sandbox("runs", cached(), *LIVE)
    assert set(first.run().values()) == {"done"}
    before = files(first.root)
    _damage(cache_of(first).shard(0), "flipped")
    plan = make_plan(first.sweep, first.root, fresh=["teacher-cache"])
    assert {stage.name for stage in plan.todo} == {"teacher-cache"}
    prepare_folders(first.root, plan, retry_failed=False)
    assert set(Sandbox(first.root, plan, first.warm, [], first.sweep).run().values()) == {"done"}
    assert files(first.root) == before


def test_more_views_are_added_to_what_is_there(sandbox: Make) -> None:
    two = sandbox("runs", cached(views=2), "train.epochs=4")
    assert set(two.run().values()) == {"done"}
    before = files(two.root)
    four = sandbox("runs", cached(views=4), "train.epochs=4")
    assert {stage.name for stage in four.plan.todo} == {"student", "teacher-cache"}
    assert set(four.run().values()) == {"done"}
    blocks = cache_of(four).manifest.blocks_per_view
    assert four.folder("teacher-cache").state()["results"]["blocks"] == 2 * blocks
    grown = files(four.root)
    name = next(name for name in before if name.endswith("records-00000.bin"))
    assert grown[name].startswith(before[name])
    assert four.folder("student").digest != two.folder("student").digest


def test_a_full_disk_pauses_the_filling_and_nothing_is_lost(sandbox: Make, tmp_path: Path) -> None:
    calm = sandbox("calm", cached(), *LIVE)
    assert set(calm.run().values()) == {"done"}
    full = _with_teacher_of(calm, sandbox("full", cached(), *LIVE))
    with small_disk(tmp_path / "disk", 64 * 1024) as disk:
        full.root.caches.symlink_to(disk)
        states = full.run()
        assert states["teacher-cache"] == "paused", full.said
        assert states["student"] == "waiting"
        full.root.caches.unlink()
    again = full.planned_again()
    assert set(again.run().values()) == {"done"}
    assert files(again.root) == files(calm.root)


def _without_header(safetensors: bytes) -> bytes:
    """The weights alone: the header names the stage."""
    return safetensors[8 + int.from_bytes(safetensors[:8], "little") :]


def _damage(shard: Path, harm: str) -> None:
    content = bytearray(shard.read_bytes())
    if harm == "removed":
        shard.unlink()
        return
    if harm == "flipped":
        content[len(content) // 2] ^= 4
    shard.write_bytes({"flipped": content, "truncated": content[: len(content) // 3], "emptied": b""}[harm])


def _with_teacher_of(done: Sandbox, fresh: Sandbox) -> Sandbox:
    """A sandbox in which the data and the teacher are those of another, done already."""
    for name in ("data", "teacher"):
        shutil.rmtree(fresh.folder(name).path)
        shutil.copytree(done.folder(name).path, fresh.root.path / "stages" / done.folder(name).path.name, symlinks=True)
    return fresh.planned_again()
