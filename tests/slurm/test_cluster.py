"""Sweeps on a real SLURM, and whatever a night may do to them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

from tests.matrix import MATRIX
from tests.plugins.drowsy import SLOWLY_TAUGHT
from tests.slurm.conftest import PROFILE, ROOT, Drill, Make, control, own_net, wait_until

SLOWLY = ("stages.teacher.train.epochs=35", *SLOWLY_TAUGHT)
"""Time enough to be disturbed in, on however fast a machine: 14 s of pauses alone, in 700 steps."""
ENDLESS = "stages.teacher.train.epochs=2000"
"""More than is ever waited for: a wish to stop is seen within ten seconds of work."""
TWO = "resources.processes_per_node=2"
TWO_NODES = "resources.nodes=2"
ONLY_TEACHER = "stages.student=null"


def shell(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def job_of(drill: Drill, name: str) -> str:
    return str(next(note["job"] for note in drill.jobs() if note["stage"] == name))


def demand_equal(drill: Drill, left_alone: Drill, name: str) -> None:
    assert drill.state(name)["state"] == "done"
    assert drill.weights(name) == left_alone.weights(name)
    assert drill.metrics(name) == left_alone.metrics(name)


def test_eight_students_of_one_teacher_are_one_array(drill: Make) -> None:
    box = drill()
    done = box.sweep("seed=range(8)", "stages.teacher.seed=0", "train.epochs=1")
    assert "submitted student x 8" in done.stdout
    assert len(box.stages("teacher")) == 1
    assert [s.state()["state"] for s in box.stages("student")] == ["done"] * 8
    students = [note["job"] for note in box.jobs() if note["stage"] == "student"]
    assert {job.partition("_")[0] for job in students} == {students[0].partition("_")[0]}
    assert sorted(int(job.partition("_")[2]) for job in students) == list(range(8))
    before = len(box.jobs())
    assert "submitted" not in box.sweep("seed=range(8)", "stages.teacher.seed=0", "train.epochs=1").stdout
    assert len(box.jobs()) == before


def test_two_nodes_with_two_processes_each(drill: Make) -> None:
    box = drill()
    box.sweep(TWO_NODES, "resources.processes_per_node=2", "train.epochs=1")
    attempt = box.state("student")["attempts"][-1]
    assert (attempt["world"], box.state("student")["state"]) == (4, "done")
    assert len(list(box.stage("student").logs.glob("attempt1-rank*.log"))) == 4


def test_a_preempted_job_comes_back(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    """By a job in the partition above: told to save, put back into the queue, and gone on with."""
    box = drill()
    sweep = box.start(*SLOWLY, TWO_NODES, ONLY_TEACHER)
    box.reaches("teacher", 100)
    shell("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 3", "--output=/dev/null")
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, said
    attempts = box.state("teacher")["attempts"]
    assert [a["outcome"] for a in attempts] == ["interrupted", "done"]
    assert attempts[1]["resumed_from"] >= 100
    demand_equal(box, undisturbed(*SLOWLY, ONLY_TEACHER, processes=2), "teacher")


@MATRIX
def test_a_requeued_job_goes_on(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    """By an administrator: killed after KillWait at the latest."""
    box = drill()
    sweep = box.start(*SLOWLY, ONLY_TEACHER)
    box.reaches("teacher", 100)
    shell("scontrol", "requeue", job_of(box, "teacher"))
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, said
    assert len(box.state("teacher")["attempts"]) == 2
    demand_equal(box, undisturbed(*SLOWLY), "teacher")


def test_a_lost_node_costs_nothing_but_the_steps_since_the_checkpoint(
    drill: Make, undisturbed: Callable[..., Drill]
) -> None:
    box = drill()
    sweep = box.start(*SLOWLY, ONLY_TEACHER)
    try:
        box.reaches("teacher", 100)
        node = box.state("teacher")["attempts"][-1]["host"]
        control("kill-node", node)
        said, _ = sweep.communicate(timeout=300)
    finally:
        control("up")
    assert sweep.returncode == 0, said
    assert len(box.state("teacher")["attempts"]) == 2
    demand_equal(box, undisturbed(*SLOWLY), "teacher")


def test_cancelled_means_not_requeued(drill: Make) -> None:
    box = drill()
    sweep = box.start(ENDLESS)
    box.reaches("teacher", 50)
    (name,) = (box.root / "sweeps").iterdir()
    shell(sys.executable, str(ROOT / "launch" / "cancel.py"), name.name, "--runs", str(box.root))
    sweep.communicate(timeout=120)
    assert sweep.returncode == 1
    wait_until(
        lambda: not set(shell("squeue", "-h", "--array", "-o", "%i").split()) & {n["job"] for n in box.jobs()}, 60
    )
    assert box.state("teacher")["state"] == box.state("student")["state"] == "cancelled"


def test_a_failure_in_the_middle_blocks_what_takes_from_it_and_nothing_else(drill: Make) -> None:
    box = drill()
    done = box.sweep(
        "train.epochs=1", "stages.other={student: {model: resnet_cifar, depth: 8}, losses: [{name: ce}]}",
        "stages.teacher.train.lr=1e30", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert box.state("teacher")["state"] == "failed", box.state("teacher")
    assert "nan or inf" in box.state("teacher")["reason"]
    assert box.state("student")["state"] == "blocked"
    assert box.state("other")["state"] == "done"


def test_two_launchers_submit_each_stage_once(drill: Make) -> None:
    box = drill()
    both = [subprocess.Popen([*box.command("train.epochs=1"), "--detach"]) for _ in range(2)]
    assert [launcher.wait(timeout=120) for launcher in both] == [0, 0]
    digests = [note["digest"] for note in box.jobs()]
    assert len(digests) == len(set(digests)) == 3
    wait_until(lambda: bool(box.stages("student")) and box.state("student")["state"] == "done", 120)


def test_jobs_run_the_code_that_was_submitted(drill: Make) -> None:
    """And so an edit of a plug-in while they wait changes nothing."""
    box = drill()
    own = own_net(box)
    shell("scontrol", "update", "partition=low", "state=down")
    try:
        box.sweep("train.epochs=1", ONLY_TEACHER, *own, detach=True)
        (box.config.parent / "own_net.py").write_text("raise RuntimeError('edited')\n")
    finally:
        shell("scontrol", "update", "partition=low", "state=up")
    wait_until(lambda: bool(box.stages("teacher")) and box.state("teacher")["state"] in ("done", "failed"), 120)
    assert box.state("teacher")["state"] == "done", box.state("teacher")
    log = (box.stage("teacher").logs / "attempt1-rank0.log").read_text()
    assert f"code {box.root / 'code'}" in log, "whatever folder it was submitted from"


def test_the_dry_run_prints_what_sbatch_would_get(drill: Make) -> None:
    box = drill()
    text = box.sweep("seed=0,1", "stages.teacher.seed=0", "--dry-run").stdout
    assert text.count("#!/bin/bash") == 3
    assert re.search(r"--array=0-1%2", text)
    assert "--dependency=afterok:" in text
    assert not (box.root / "jobs").exists()
    assert PROFILE.exists()


def test_stages_longer_than_the_limit_go_on(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    """A limit of one minute; on a node the steps take 72 s, however fast the machine."""
    box = drill()
    pause = "time.sleep(0.06 * self.training * ('SLURM_PROCID' in os.environ))"
    long = ("train.epochs=60", ONLY_TEACHER, *own_net(box, forward=pause))
    box.sweep(*long, "resources.time_min=1")
    assert len(box.state("teacher")["attempts"]) >= 2
    demand_equal(box, undisturbed(*long), "teacher")


def test_students_wait_each_for_their_own_teacher(drill: Make) -> None:
    box = drill()
    done = box.sweep("seed=range(3)", "train.epochs=1")
    assert re.search(r"submitted student x 3 as job \d+, aftercorr:\d+", done.stdout), done.stdout
    assert [s.state()["state"] for s in [*box.stages("teacher"), *box.stages("student")]] == ["done"] * 6


def test_sharded_over_two_nodes(drill: Make) -> None:
    """ZeRO 1, two processes on each; and with an epoch in between that another job takes away."""
    over = (
        "train.epochs=20",
        TWO_NODES,
        "resources.processes_per_node=2",
        "engine={name: deepspeed, zero_stage: 1}",
        ONLY_TEACHER,
        *SLOWLY_TAUGHT,
    )
    box = drill()
    box.sweep(*over, detach=True)
    box.reaches("teacher", 50)
    shell("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 3", "--output=/dev/null")
    state = box.becomes("teacher", "done", 240)
    assert [a["outcome"] for a in state["attempts"]] == ["interrupted", "done"]
    assert {a["world"] for a in state["attempts"]} == {4}
