"""gc frees what nobody needs, and nothing that anybody does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.jobs.storage import LEFT_OVER_S, free, garbage, usage
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.fake_sweeps import Fake, fill, finish

DAY = 24 * 3600.0


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A finished sweep; every stage with a checkpoint of 1000 and a student of 100 bytes."""
    fake = Fake(Root(tmp_path / "runs"), axes={"seed": ["0", "1"]})
    for folder in fake.all():
        finish(folder)
        if folder.name == "data":
            fill(folder.path / "store" / "train.beton", 5000)
        else:
            fill(folder.checkpoints / "step_00001000" / "model.safetensors", 1000)
            fill(folder.snapshot("last"), 100)
            (folder.path / "student.safetensors").symlink_to("snapshots/last/student.safetensors")
    return fake


def age(fake: Fake, days: float, *, plan: bool = True) -> None:
    """Make everything look as if nothing had touched it since."""
    then = time.time() - days * DAY
    for folder in fake.all():
        path = folder.path / "state.json"
        path.write_text(json.dumps({**folder.state(), "updated": then}))
    if plan:
        os.utime(fake.sweep.plan_file, (then, then))


def freed(root: Root, **options: object) -> list[str]:
    """What gc deletes, as stage/part; after deleting it."""
    found = garbage(root, **options)  # type: ignore[arg-type]
    assert [problem for _, problem in free(found) if problem] == []
    assert not [item for item in found if item.path.exists()]
    return sorted(str(item.path.relative_to(root.path)) for item in found)


def path_of(folder: StageFolder, part: str = "") -> str:
    return f"stages/{folder.path.name}{part}"


class TestUsage:
    def test_every_byte_is_counted_once(self, fake: Fake) -> None:
        root = fake.root
        fill(root.path / "caches" / "ab" / "shard", 700)
        fill(root.path / "mlflow.db", 50)
        fake.folder("student", "1").write_state(state="interrupted")
        kinds = {kind.kind: kind.bytes for kind in usage(root)}
        assert kinds["checkpoints of done stages"] == 2000
        assert kinds["checkpoints of unfinished stages"] == 1000
        assert kinds["students (snapshots)"] == 300
        assert kinds["converted data"] == 5000
        assert kinds["teacher caches"] == 700
        assert kinds["tracking (MLflow)"] == 50
        everything = sum(p.stat().st_size for p in root.path.rglob("*") if p.is_file() and not p.is_symlink())
        assert sum(kinds.values()) == everything

    def test_of_nothing(self, tmp_path: Path) -> None:
        assert usage(Root(tmp_path / "absent")) == []


class TestWithoutAge:
    def test_frees_checkpoints_of_done_stages_and_keeps_their_students(self, fake: Fake) -> None:
        open_ = fake.folder("student", "1")
        open_.write_state(state="interrupted")
        expected = [
            path_of(fake.folder("student", "0"), "/checkpoints"),
            path_of(fake.folder("teacher"), "/checkpoints"),
        ]
        assert freed(fake.root) == sorted(expected)
        assert open_.checkpoints.exists()
        for folder in fake.all():
            assert folder.name == "data" or folder.snapshot("last").exists()
        assert freed(fake.root) == []

    def test_a_pinned_stage_and_its_ancestors_keep_everything(self, fake: Fake) -> None:
        fake.folder("student", "0").pin("paper")
        assert freed(fake.root) == [path_of(fake.folder("student", "1"), "/checkpoints")]

    def test_what_runs_is_left_alone(self, fake: Fake) -> None:
        teacher = fake.folder("teacher")
        teacher.write_state(state="interrupted")
        claim = StageFolder(teacher.path).claim({})
        (teacher.path / "state.json").write_text(json.dumps({**teacher.state(), "state": "done"}))
        assert path_of(teacher, "/checkpoints") not in freed(fake.root)
        claim.release()

    def test_a_stage_taken_up_meanwhile_is_kept_and_said(self, fake: Fake) -> None:
        teacher = fake.folder("teacher")
        found = garbage(fake.root)
        teacher.write_state(state="interrupted")
        claim = StageFolder(teacher.path).claim({})
        problems = {item.path: problem for item, problem in free(found)}
        assert "being run" in problems[teacher.checkpoints]
        assert teacher.checkpoints.exists()
        assert list(problems.values()).count("") == len(found) - 1
        claim.release()

    def test_what_was_taken_out_goes(self, fake: Fake) -> None:
        target = fake.folder("teacher").take_out("wrong split")
        item = next(item for item in garbage(fake.root) if item.path == target)
        assert item.why == "taken out: wrong split"
        freed(fake.root)
        assert not target.exists()

    @pytest.mark.parametrize(
        "name", [".state.json.node7.12.tmp", "checkpoints/.step_00000100.tmp/x", ".dropped.checkpoints/x",
                 "checkpoints/damaged_step_00000050/x"],
    )  # fmt: skip
    def test_left_overs_of_killed_writers_go_after_a_day(self, fake: Fake, name: str) -> None:
        stage = fake.folder("student", "0")
        stage.write_state(state="interrupted")
        left = fill(stage.path / name, 10)
        top = left if left.parent in (stage.path, stage.checkpoints) else left.parent
        assert path_of(stage) not in "".join(freed(fake.root))
        then = time.time() - LEFT_OVER_S - 60
        os.utime(top, (then, then))
        assert freed(fake.root) == [str(top.relative_to(fake.root.path))]
        assert (stage.checkpoints / "step_00001000").exists()

    def test_other_roots_are_never_touched(self, fake: Fake, tmp_path: Path) -> None:
        assert garbage(Root(tmp_path / "mine", [fake.root.path])) == []
        assert garbage(Root(tmp_path / "mine", [fake.root.path]), older_s=0.0) == []


class TestWithAge:
    def test_old_stages_that_nobody_needs_go_whole(self, fake: Fake) -> None:
        age(fake, 20)
        found = garbage(fake.root, older_s=14 * DAY)
        assert sum(item.students for item in found) == 3
        everything = sorted(path_of(folder) for folder in fake.all())
        assert freed(fake.root, older_s=14 * DAY) == everything
        assert fake.root.stages() == []

    def test_students_can_be_kept(self, fake: Fake) -> None:
        fake.folder("student", "1").write_state(state="failed")
        age(fake, 20)
        stages = [fake.folder("teacher"), fake.folder("student", "0")]
        whole = [path_of(fake.folder("data")), path_of(fake.folder("student", "1"))]
        gone = freed(fake.root, older_s=14 * DAY, keep_students=True)
        assert gone == sorted([*whole, *(path_of(s, "/checkpoints") for s in stages)])
        assert all(s.snapshot("last").exists() for s in stages)

    @pytest.mark.parametrize(
        "need",
        [
            pytest.param(lambda f: f.folder("student", "0").pin("x"), id="a pinned stage"),
            pytest.param(lambda f: f.folder("student", "0").write_state(step=5), id="a stage touched since"),
        ],
    )
    def test_what_a_stage_that_stays_was_made_from_stays(self, fake: Fake, need: Callable[[Fake], None]) -> None:
        age(fake, 20)
        need(fake)
        whole = [name for name in freed(fake.root, older_s=14 * DAY) if not name.endswith("/checkpoints")]
        assert [name.rpartition("-")[0] for name in whole] == ["stages/student"]
        assert sorted(f.name for f in fake.root.stages()) == ["data", "student", "teacher"]
        assert fake.folder("student", "0").checkpoints.exists()

    def test_a_sweep_planned_since_keeps_what_it_reuses(self, fake: Fake) -> None:
        age(fake, 20, plan=False)
        assert all(name.endswith("/checkpoints") for name in freed(fake.root, older_s=14 * DAY))
        assert len(fake.root.stages()) == 4

    def test_a_live_sweep_keeps_all_of_its_stages_however_old(self, fake: Fake) -> None:
        age(fake, 20)
        with fake.sweep.launching():
            gone = freed(fake.root, older_s=14 * DAY)
        assert all(name.endswith("/checkpoints") for name in gone)
        assert len(fake.root.stages()) == 4

    def test_young_checkpoints_stay(self, fake: Fake) -> None:
        assert freed(fake.root, older_s=14 * DAY) == []
