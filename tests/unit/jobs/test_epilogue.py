"""What a job's batch script decides; the requeue itself is seen on a real cluster (tests/slurm/test_faults.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale import atomic
from kdscale.jobs.slurm.epilogue import conclude
from kdscale.jobs.stage_job import CANCELLED, INTERRUPTED, error_file
from kdscale.pipeline.artifacts import Root, StageFolder


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageFolder:
    """Submitted as a task of an array; there is no scheduler to requeue it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    root = Root(tmp_path)
    folder = root.create_stage("teacher", "ab" * 16)
    folder.write_state(state="queued", step=40)
    tasks = [{"job": "12_3", "digest": folder.digest, "stage": "teacher"}]
    atomic.write_json(tmp_path / "jobs" / "12.json", {"schema": 1, "submitted": 1.0, "tasks": tasks})
    return folder


def said(stage: StageFolder, code: int) -> tuple[int, str, str]:
    left_with = conclude(Root(stage.path.parent.parent), "12_3", code)
    return left_with, stage.state()["state"], stage.state()["reason"]


def test_killed_without_a_word(stage: StageFolder) -> None:
    code, state, reason = said(stage, 137)
    assert (code, state) == (137, "interrupted")
    assert reason.startswith("job 12_3 ended on n1 by SIGKILL")
    assert "before its ranks had met" in reason


def test_a_rank_s_own_error(stage: StageFolder) -> None:
    atomic.write_json(stage.logs / "meeting-12_3-0.json", {"host": "n1", "port": 1, "attempt": 1, "world": 2})
    cause = {"kind": "NonFiniteLoss", "message": "nan in term kd", "own": True, "disk_full": False, "errno": None}
    atomic.write_json(error_file(stage.path, 1, 1), cause)
    assert said(stage, 1) == (1, "failed", "nan in term kd")


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: Detected 2 oom-kill event(s) in step 12.0 cgroup.",
    ],
)
def test_out_of_memory_is_not_tried_again(stage: StageFolder, line: str) -> None:
    """As SLURM 22 and 20 put it."""
    output = stage.path.parent.parent / "jobs" / "slurm" / "12" / "12_3_0_log.out"
    output.parent.mkdir(parents=True)
    output.write_text("x" * 10_000 + f"\n{line}\nsrun: error: n1: task 0: Out Of Memory\n")
    code, state, reason = said(stage, 137)
    assert (code, state) == (137, "failed")
    assert "resources.mem_gb" in reason


def test_what_has_saved_itself_is_left_as_it_is(stage: StageFolder) -> None:
    assert said(stage, INTERRUPTED) == (INTERRUPTED, "queued", "")
    stage.write_state(state="done")
    assert said(stage, 1) == (1, "done", "")


def test_cancelled_is_not_interrupted(stage: StageFolder) -> None:
    stage.request_cancel("not wanted")
    assert said(stage, 1)[:2] == (CANCELLED, "cancelled")


def test_what_another_job_runs_is_left_to_it(stage: StageFolder) -> None:
    stage.claim({"world": 1})
    stage.write_state(state="running")
    assert said(stage, 1) == (1, "running", "")


def test_a_job_that_nobody_noted_is_left_alone(tmp_path: Path) -> None:
    assert conclude(Root(tmp_path), "99", 1) == 1


def test_of_a_pack_each_stage_is_judged_that_does_not_rest(stage: StageFolder) -> None:
    root = Root(stage.path.parent.parent)
    done, failed, cancelled = (root.create_stage(name, digit * 32) for name, digit in zip("abc", "123", strict=True))
    done.write_state(state="done")
    failed.write_state(state="failed", reason="nan")
    cancelled.write_state(state="queued")
    cancelled.request_cancel("not wanted")
    pack = [stage, done, failed, cancelled]
    tasks = [{"job": "12_3", "digest": one.digest, "stage": one.name} for one in pack]
    atomic.write_json(root.path / "jobs" / "12.json", {"schema": 1, "submitted": 1.0, "tasks": tasks})

    assert conclude(root, "12_3", 137) == 137
    assert [one.state()["state"] for one in pack] == ["interrupted", "done", "failed", "cancelled"]
    assert "by SIGKILL" in stage.state()["reason"]
    assert "had met" not in stage.state()["reason"], "nobody of a pack has to meet"
