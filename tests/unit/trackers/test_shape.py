"""What a sweep's files become, before any store is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdscale.errors import ConfigError
from kdscale.trackers.files import read_sweep
from kdscale.trackers.shape import RunShape, metric_name, shapes_of
from tests.fake_runs import FakeSweep, plan


def shapes(sweep: FakeSweep, *, open_: bool = False) -> list[RunShape]:
    return list(shapes_of(read_sweep(sweep.root, sweep.folder), open_=open_))


@pytest.mark.parametrize(
    ("end", "status", "sweep_status"),
    [
        ("done", "FINISHED", "FINISHED"), ("failed", "FAILED", "FAILED"), ("interrupted", "KILLED", "KILLED"),
        ("paused", "KILLED", "KILLED"), ("cancelled", "KILLED", "KILLED"), ("running", "RUNNING", "RUNNING"),
        ("evaluating", "RUNNING", "RUNNING"), ("waiting", None, "KILLED"),
    ],
)  # fmt: skip
def test_status_is_right(tmp_path: Path, end: str, status: str | None, sweep_status: str) -> None:
    sweep = plan(tmp_path, axes={})
    sweep.stage("teacher").start().finish()
    student = sweep.stage("student")
    if end == "done":
        student.start().finish()
    elif end in ("running", "evaluating"):
        student.start().train(100).say(end)
    elif end != "waiting":
        student.start().train(100).end(end, reason="because")
    parent, trial, *stages = shapes(sweep)
    by_name = {stage.tags["kdscale.stage"]: stage for stage in stages}
    assert by_name["teacher"].status == "FINISHED"
    assert (parent.status, trial.status, trial.state) == (sweep_status, status or "KILLED", end)
    assert ("student" in by_name) == (status is not None), "a stage has a run as soon as it has begun"
    if status:
        assert by_name["student"].status == status
        assert (by_name["student"].ended is not None) == (status != "RUNNING")


def test_a_sweep_that_somebody_works_on_is_running(tmp_path: Path) -> None:
    sweep = plan(tmp_path)
    assert shapes(sweep, open_=True)[0].status == "RUNNING"
    assert shapes(sweep)[0].status == "KILLED"
    assert {shape.status for shape in shapes(sweep, open_=True)[1:]} == {"SCHEDULED"}


def test_a_reused_teacher_does_not_make_the_trial_old(tmp_path: Path) -> None:
    sweep = plan(tmp_path, axes={})
    teacher = sweep.stage("teacher")
    teacher.clock -= 7 * 86_400
    teacher.start().finish()
    sweep.stage("student").start().finish()
    _, trial, *_ = shapes(sweep)
    assert trial.started == json.loads((sweep.folder / "plan.json").read_text())["created"]
    assert trial.ended == sweep.stage("student").clock


def test_a_shared_stage_is_named_by_what_its_trials_share(tmp_path: Path) -> None:
    sweep = plan(tmp_path, axes={"method": ["kd", "crd"], "seed": ["0", "1"]})
    content = json.loads((sweep.folder / "plan.json").read_text())
    shared = sweep.stage("student", method="kd", seed="0")
    for trial in content["trials"]:
        if trial["axes"]["method"] == "kd":
            trial["stages"] = {
                "teacher": trial["stages"]["teacher"],
                "init": shared.digest,
                "student": trial["stages"]["student"],
            }
    (sweep.folder / "plan.json").write_text(json.dumps(content))
    shared.start()
    names = [shape.name for shape in shapes(sweep) if shape.level == "stage"]
    assert names == ["student @ kd"]


def test_reasons_come_first(tmp_path: Path) -> None:
    sweep = plan(tmp_path, axes={})
    sweep.stage("teacher").start().train(10).end("failed", reason="NonFiniteLoss: term ce at step 10")
    for shape in shapes(sweep):
        assert shape.note.startswith("**teacher failed**: NonFiniteLoss: term ce at step 10")


def test_seeds_that_share_their_last_stage_are_one_outcome(tmp_path: Path) -> None:
    sweep = plan(tmp_path, axes={"seed": ["0", "1"]})
    content = json.loads((sweep.folder / "plan.json").read_text())
    first = content["trials"][0]["stages"]
    content["trials"][1]["stages"] = first
    (sweep.folder / "plan.json").write_text(json.dumps(content))
    sweep.stages[first["teacher"]].start().finish()
    sweep.stages[first["student"]].start().finish()
    (group,) = [shape for shape in shapes(sweep) if shape.level == "group"]
    assert group.figures["n"] == 1
    assert "final/top1_ci95" not in group.figures


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train/loss", "train/loss"), ("train/term/a=b", "train/term/a_b"), ("a//b", "a/b"), ("../up", "up"),
        ("/", "_"), ("", "_"), ("x" * 300, "x" * 250),
    ],
)  # fmt: skip
def test_names_are_made_fit(text: str, name: str) -> None:
    assert metric_name(text) == name


def test_what_is_no_sweep_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep"):
        read_sweep(tmp_path, tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        read_sweep(tmp_path, tmp_path)


def test_what_is_queued_runs_whether_or_not_somebody_follows_it(tmp_path: Path) -> None:
    sweep = plan(tmp_path)
    for stage in sweep.stages.values():
        stage.start()
        stage.end("queued")
    found = {shape.level: shape.status for shape in shapes(sweep, open_=False)}
    assert (found["sweep"], found["trial"]) == ("RUNNING", "SCHEDULED")
