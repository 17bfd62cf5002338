"""What fails on a cluster, and who brings it back: mostly nobody has to be there (`--detach`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.matrix import MATRIX
from tests.slurm.conftest import Drill, Make, own_net, wait_until
from tests.slurm.test_cluster import ENDLESS, ONLY_TEACHER, SLOWLY, TWO, demand_equal, job_of, shell


def pids_of(drill: Drill, name: str) -> list[int]:
    """Of the ranks that run a stage, in rank order; tests run beside the nodes, whose processes they see."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        job = b"SLURM_JOB_ID=" + job_of(drill, name).encode()
        if b"submitit.core._submit" in command and job in environment and b"srun" not in command:
            rank = next((int(item[13:]) for item in environment if item.startswith(b"SLURM_PROCID=")), None)
            if rank is not None:
                found[rank] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def plugin(drill: Drill, source: str) -> tuple[str, ...]:
    """Overrides with which the teacher is a network of the user's own, in whose making something may go wrong."""
    return own_net(drill, made=f"if 'SLURM_PROCID' in os.environ:\n            {source}")


def test_a_killed_rank_comes_back_by_itself(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    box = drill()
    box.sweep(*SLOWLY, ONLY_TEACHER, TWO, detach=True)
    box.reaches("teacher", 100)
    os.kill(pids_of(box, "teacher")[1], signal.SIGKILL)
    state = box.becomes("teacher", "done")
    assert len(state["attempts"]) == 2
    assert len(box.jobs()) == 2, "the same job, put back into the queue"
    demand_equal(box, undisturbed(*SLOWLY, ONLY_TEACHER, processes=2), "teacher")


def test_a_rank_that_hangs_is_named_and_ended(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    box = drill().ask_for(hang_after_min=0.2)
    box.sweep(*SLOWLY, ONLY_TEACHER, TWO, detach=True)
    box.reaches("teacher", 100)
    os.kill(pids_of(box, "teacher")[1], signal.SIGSTOP)

    def told() -> list[str]:
        """By rank 0, and by rank 1 where SLURM, ending the step, lets it go on first; others may miss a neighbour."""
        texts = [path.read_text() for path in box.stage("teacher").logs.glob("attempt1-*.error.json")]
        return [text for text in texts if "RankHung" in text]

    wait_until(told, 60)
    assert all("rank 1 says nothing" in said and "at step" in said for said in told())
    log = (box.stage("teacher").logs / "attempt1-rank0.log").read_text()
    assert "most recent call first" in log
    assert "kdscale/train/loop.py" in log, "in a step, or where an epoch ends"
    box.becomes("teacher", "done")
    demand_equal(box, undisturbed(*SLOWLY, ONLY_TEACHER, processes=2), "teacher")


def test_scancel_means_cancelled(drill: Make) -> None:
    """Also where the stage has saved itself on its way out: who wanted it gone does not find it back."""
    box = drill()
    sweep = box.start(ENDLESS)
    box.reaches("teacher", 100)
    shell("scancel", job_of(box, "teacher"))
    said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, said
    assert (box.state("teacher")["state"], box.state("student")["state"]) == ("cancelled", "blocked"), said
    assert "scancel" in box.state("teacher")["reason"]
    assert box.state("teacher")["step"] >= 100
    assert not shell("squeue", "--noheader")


def test_a_passing_error_is_tried_again_later_and_cancels_nothing(drill: Make) -> None:
    box = drill().ask_for(retry_after_min=[0.1, 0.1])
    marker = box.config.parent / "was_here"
    net = plugin(box, f"m = pathlib.Path({str(marker)!r}); was = m.exists(); m.touch()")
    text = (box.config.parent / "own_net.py").read_text()
    raising = "\n            if not was: raise OSError(errno.EIO, 'Input/output error')"
    (box.config.parent / "own_net.py").write_text(text.replace("m.touch()", "m.touch()" + raising))
    box.sweep("train.epochs=1", *net, detach=True)
    wait_until(lambda: "again in 0:06" in box.state("teacher")["reason"], 60)
    assert box.state("teacher")["state"] == "interrupted"
    box.becomes("student", "done")
    assert len(box.jobs()) == 3, "the jobs that were submitted, and no others"


@MATRIX
def test_a_node_that_fails_twice_is_left_out(drill: Make) -> None:
    box = drill().ask_for(retry_after_min=[0.02] * 3)
    net = plugin(box, "assert socket.gethostname() != 'n1' or os._exit(9)")
    box.sweep("train.epochs=1", ONLY_TEACHER, *net, detach=True)
    state = box.becomes("teacher", "done", 90)
    assert state["attempts"][-1]["host"] == "n2"
    assert "ExcNodeList=n1" in shell("scontrol", "show", "job", job_of(box, "teacher"))


@MATRIX
def test_errors_that_go_on_pause_the_stage(drill: Make) -> None:
    box = drill().ask_for(retry_after_min=[0.02])
    box.sweep("train.epochs=1", *plugin(box, "raise OSError(errno.ESTALE, 'Stale file handle')"), detach=True)
    state = box.becomes("teacher", "paused", 90)
    assert "Stale file handle" in state["reason"]
    assert "2 times" in state["reason"]


def test_a_full_disk_is_waited_for(drill: Make, small_disk: Path) -> None:
    """With room again, it goes on by itself."""
    box = drill().ask_for(retry_after_min=[0.05] * 20)
    box.root = small_disk / "runs"
    box.sweep(*SLOWLY, ONLY_TEACHER, detach=True)
    box.reaches("teacher", 100)
    fill = small_disk / "fill"
    with suppress(OSError), fill.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    job = job_of(box, "teacher")  # says it without a byte of the disk, where a second log may find no room to begin
    wait_until(lambda: "Restarts=0" not in shell("scontrol", "show", "job", job), 120)
    fill.unlink()
    state = box.becomes("teacher", "done", 120)
    assert len(state["attempts"]) >= 2


def test_what_a_site_does_not_bring_back_is_healed(drill: Make, undisturbed: Callable[..., Drill]) -> None:
    """Where jobs may not be requeued, dependants are cancelled with them: cron submits all of it again, once."""
    box = drill().ask_for(sbatch={"no-requeue": True})
    box.sweep(*SLOWLY, detach=True)
    box.reaches("teacher", 100)
    os.kill(pids_of(box, "teacher")[0], signal.SIGKILL)
    wait_until(lambda: not shell("squeue", "--noheader"), 60)
    assert "submitted teacher as job" in (said := box.heal()), said
    assert "submitted student as job" in said
    assert "submitted" not in box.heal()
    box.becomes("student", "done")
    assert "at rest; report" in box.heal()
    assert "at rest" not in box.heal()
    demand_equal(box, undisturbed(*SLOWLY), "teacher")
    demand_equal(box, undisturbed(*SLOWLY), "student")


def test_more_than_the_site_takes_at_once_waits(drill: Make) -> None:
    shell("sacctmgr", "--immediate", "modify", "user", "root", "set", "maxsubmitjobs=3")
    try:
        time.sleep(1.0)  # slurmctld hears of it
        box = drill()
        done = box.sweep("seed=range(5)", "stages.teacher.seed=0", "train.epochs=1")
        assert "the queue is full for now" in done.stdout
        assert [s.state()["state"] for s in box.stages("student")] == ["done"] * 5
    finally:
        shell("sacctmgr", "--immediate", "modify", "user", "root", "set", "maxsubmitjobs=-1")
