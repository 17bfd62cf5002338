"""Several stages in one job (`resources.pack`): what they come to is what they would have come to alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

from tests.matrix import MATRIX
from tests.plugins.drowsy import SLOW_STUDENT
from tests.slurm.conftest import ROOT, Drill, Make, wait_until
from tests.slurm.test_cluster import job_of, shell
from tests.slurm.test_faults import pids_of

FIVE = ("seed=range(5)", "stages.teacher.seed=0", "train.epochs=1")
TWO_LONG = (
    "seed=range(2)", "stages.teacher.seed=0", "stages.teacher.train.epochs=1", "stages.student.train.epochs=35",
    *SLOW_STUDENT,
)  # fmt: skip
PACKED = "stages.student.resources.pack=3"
ONE_CORE = "engine.processes=1"


def weights(drill: Drill) -> dict[str, bytes]:
    return {s.path.name: (s.path / "student.safetensors").read_bytes() for s in drill.stages("student")}


def states(drill: Drill, name: str) -> list[str]:
    return sorted(str(stage.state()["state"]) for stage in drill.stages(name))


def test_packed_stages_have_the_weights_of_lone_ones(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    box = drill()
    done = box.sweep(*FIVE, ONE_CORE, PACKED)
    assert "submitted student x 5, 3 a job, as job" in done.stdout
    students = [note["job"] for note in box.jobs() if note["stage"] == "student"]
    assert sorted(students.count(job) for job in set(students)) == [2, 3]
    assert weights(box) == weights(undisturbed(*FIVE))
    assert all(len(stage.state()["attempts"]) == 1 for stage in box.stages("student"))


def test_one_that_fails_takes_nobody_else_s_children_with_it(drill: Make) -> None:
    """With nobody there to submit anything again."""
    box = drill()
    child = (
        "stages.child={student: {model: resnet_cifar, depth: 8}, teachers: {t: {from: student}}, losses: [{name: kd}]}"
    )
    box.sweep("train.epochs=1", child, "stages.student.train.lr=0.05,1e30", PACKED, detach=True)
    wait_until(lambda: states(box, "child") == ["blocked", "done"], 120)
    assert states(box, "student") == ["done", "failed"]
    (blocked,) = [stage for stage in box.stages("child") if stage.state()["state"] == "blocked"]
    assert "did not finish" in blocked.state()["reason"]
    wait_until(lambda: not shell("squeue", "--noheader"), 30)


@MATRIX
@pytest.mark.parametrize("disturb", ["killed", "requeued"])
def test_a_disturbed_pack_comes_back(drill: Make, undisturbed: Callable[..., Drill], disturb: str) -> None:
    box = drill()
    box.sweep(*TWO_LONG, ONE_CORE, PACKED, detach=True)
    wait_until(lambda: len(box.stages("student")) == 2, 30)
    wait_until(lambda: all(stage.state()["step"] >= 100 for stage in box.stages("student")), 120)
    if disturb == "killed":
        os.kill(pids_of(box, "student")[0], signal.SIGKILL)
    else:
        shell("scontrol", "requeue", job_of(box, "student"))
    wait_until(lambda: states(box, "student") == ["done", "done"], 180)
    assert all(len(stage.state()["attempts"]) == 2 for stage in box.stages("student"))
    assert weights(box) == weights(undisturbed(*TWO_LONG))


def test_cancelling_one_leaves_the_others_of_its_job(drill: Make) -> None:
    """In the queue, and while it runs."""
    box = drill()
    box.sweep("seed=range(3)", "stages.teacher.seed=0", "stages.student.train.epochs=400", PACKED, detach=True)
    first, second, third = box.stages("student")
    cancel = (sys.executable, str(ROOT / "launch" / "cancel.py"), "--runs", str(box.root))
    shell(*cancel, first.path.name)
    wait_until(lambda: min(s.state()["step"] for s in (second, third)) >= 20, 120)
    shell(*cancel, second.path.name)
    wait_until(lambda: second.claimant() is None, 60)
    assert [stage.state()["state"] for stage in (first, second, third)] == ["cancelled", "cancelled", "running"]
    assert first.state()["step"] == 0
    shell(*cancel, third.path.name)
    wait_until(lambda: not shell("squeue", "--noheader"), 60)
    assert states(box, "student") == ["cancelled"] * 3
