"""Looking at jobs of a real SLURM, and ending them: from a machine that none of their ranks runs on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from kdscale.jobs.slurm.queue import queued_jobs
from tests.slurm.conftest import EXPERIMENT, PROFILE, ROOT, Drill, Make, wait_until

LONG = "stages.teacher.train.epochs=400"
TWO_NODES = "resources.nodes=2"
ONLY_TEACHER = "stages.student=null"


def launch(box: Drill, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / f"{script}.py"), *arguments, "--runs", str(box.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def status(box: Drill) -> str:
    """The screen, as one line: it folds as its paths are long."""
    return " ".join(launch(box, "status", "latest").stdout.split())


def document(box: Drill) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(launch(box, "status", "latest", "--json").stdout)
    return found


def control(*command: str) -> None:
    subprocess.run(["scontrol", *command], check=True)


def nothing_queued(box: Drill) -> bool:
    return not queued_jobs().keys() & {note["job"] for note in box.jobs()}


def test_what_jobs_wait_for_is_said_in_words_and_a_stage_cancelled_takes_its_own_along(drill: Make) -> None:
    box = drill()
    control("update", "partition=low", "state=down")
    try:
        box.sweep("seed=range(3)", "stages.teacher.seed=0", detach=True)
        jobs = {(note["stage"], note["job"]) for note in box.jobs()}
        wait_until(lambda: "(PartitionDown)" in status(box), 60)
        said = status(box)
        array = next(job for stage, job in jobs if stage == "student").partition("_")[0]
        assert "drill:data for its partition, which takes jobs but starts none now (PartitionDown) job" in said
        assert f"3 x student for teacher (queued), data (queued) jobs {array}_[0-2]" in said
        found = document(box)
        assert found["queue"]["problem"] is None
        assert not found["over"]
        assert {(s["stage"], s["job"]["id"]) for s in found["stages"]} == jobs

        done = launch(box, "cancel", "drill", "teacher", "student[s1]")
        assert done.stdout.splitlines()[:2] == [
            "drill:teacher cancelled (it was queued)", "drill:student[s1] cancelled (it was queued)",
        ]  # fmt: skip
        assert "drill:student[s0] is blocked: teacher was cancelled" in done.stdout
        assert "withdrawn from the queue: jobs" in done.stdout
        wait_until(lambda: len(queued_jobs().keys() & {job for _, job in jobs}) == 1, 30)
        assert sorted(s.state()["state"] for s in box.stages("student")) == ["blocked", "blocked", "cancelled"]
        assert launch(box, "cancel", "drill").returncode == 0
        wait_until(lambda: nothing_queued(box), 30)
    finally:
        control("update", "partition=low", "state=up")


def test_stacks_and_logs_of_ranks_on_other_nodes_and_cancelled_is_saved(drill: Make) -> None:
    box = drill()
    box.sweep(LONG, TWO_NODES, ONLY_TEACHER, detach=True)
    box.reaches("teacher", 20)
    row = next(line for line in launch(box, "status").stdout.splitlines() if line.startswith(" drill:teacher"))
    assert "/" in row.split()[1]
    stacks = launch(box, "logs", "drill:teacher", "--stacks")
    assert stacks.returncode == 0, stacks.stderr
    first, second = stacks.stdout.split("--- rank 1\n")
    assert first.startswith("--- rank 0\n")
    for ranks in (first, second):
        assert "train_step" in ranks or "_train_epoch" in ranks
    assert "ready after" in launch(box, "logs", "drill:teacher", "--rank", "1", "-n", "0").stdout
    assert "Starting with JobEnvironment" in launch(box, "logs", "drill:teacher", "--job").stdout
    step = box.state("teacher")["step"]
    cancelled = launch(box, "cancel", "drill", "teacher", "--wait", "60")
    assert "drill:teacher stopped at step" in cancelled.stdout
    wait_until(lambda: nothing_queued(box), 60)
    state = box.state("teacher")
    assert (state["state"], len(state["attempts"])) == ("cancelled", 1)
    assert state["step"] >= step > 0


def test_a_job_that_died_before_a_rank_wrote_is_lost_and_its_own_output_tells_why(drill: Make, tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(
        yaml.safe_dump({**yaml.safe_load(PROFILE.read_text()), "setup": ["echo no module gcc", "exit 3"]})
    )
    box = drill("broken", {**EXPERIMENT, "stages": {"teacher": EXPERIMENT["stages"]["teacher"]}})
    command = box.command()
    command[command.index(str(PROFILE))] = str(profile)
    subprocess.run([*command, "--detach"], check=True, capture_output=True, timeout=120)
    wait_until(lambda: nothing_queued(box), 60)
    assert "lost drill:data job" in status(box)
    assert "is gone from the queue and its ranks wrote nothing" in status(box)
    log = launch(box, "logs", "drill:data")
    assert (log.returncode, log.stdout) == (0, "no module gcc\n")
