"""Where the processes of a stage stand right now: each thread's Python stack, written into each rank's log on SIGUSR1.

Processes of this machine are sent the signal themselves; those of a SLURM job through the scheduler, which finds all
of its tasks on all of its nodes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from kdscale.errors import StageError, SubmissionError
from kdscale.jobs.logs import LogFile, Sink, log_files, print_from
from kdscale.jobs.slurm.outputs import job_of
from kdscale.jobs.slurm.queue import QueuedJob, queued_jobs, signal_job
from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.claims import PROC, this

__all__ = ["ask_process", "stacks"]

HERE_WITHIN_S = 5.0
CLUSTER_WITHIN_S = 20.0
"""How long the ranks' logs may take to grow: a shared file system shows what other nodes write a little later."""


def stacks(folder: StageFolder, out: Sink) -> None:
    """Have every live rank write the Python stack of each of its threads into its log, and print them.

    Raises:
        StageError: nothing runs, it runs on another machine that cannot be asked, or its processes do not listen.
    """
    job = _job(folder)
    holder = folder.last_claim() if job is not None else folder.claimant()
    if holder is None and job is not None:
        raise _starting(folder, job)
    if holder is None:
        raise StageError(f"{folder.path.name} does not run now (its state: {folder.state()['state']})")
    logs = [log for log in log_files(folder) if log.attempt == holder["attempt"]]
    before = {log: log.path.stat().st_size for log in logs}
    asked = len(logs) if job is not None and _ask_job(folder, job, holder) else _ask_here(folder, holder)
    _wait_until_written(before, asked, HERE_WITHIN_S if job is None else CLUSTER_WITHIN_S)
    for log, size in before.items():
        out.write(f"--- rank {log.rank}\n")
        if log.path.stat().st_size > size:
            print_from(log.path, size, out)
        else:
            out.write("wrote nothing: it is not in Python code, stopped, or gone\n")


# --------------------------------------------------------------------------- through the scheduler


def _job(folder: StageFolder) -> QueuedJob | None:
    """The job that runs the stage; None where no job does. A hung one is found here though its claim has gone stale."""
    job = job_of(folder)
    if job is None:
        return None
    try:
        found = queued_jobs().get(job)
    except SubmissionError as error:
        if _is_here(folder.claimant()):
            return None
        raise StageError(f"{folder.path.name} runs as job {job}, which cannot be asked: {error}") from None
    return found if found is not None and found.state == "RUNNING" else None


def _ask_job(folder: StageFolder, job: QueuedJob, holder: Mapping[str, Any]) -> bool:
    """Send SIGUSR1 to a job's tasks, once all of them listen: a rank that has not begun would be killed by it."""
    if job.starts is None or float(holder["since"]) < job.starts:
        raise _starting(folder, job)
    try:
        signal_job(job.id, "USR1")
    except SubmissionError as error:
        raise StageError(f"{folder.path.name}: job {job.id} was not asked: {error}") from None
    return True


def _starting(folder: StageFolder, job: QueuedJob) -> StageError:
    return StageError(f"{folder.path.name}: job {job.id} is still starting on {job.nodes}; try again")


# --------------------------------------------------------------------------- on this machine


def _is_here(holder: Mapping[str, Any] | None) -> bool:
    here = this()
    return holder is not None and (holder["host"], holder["namespace"]) == (here["host"], here["namespace"])


def _ask_here(folder: StageFolder, holder: Mapping[str, Any]) -> int:
    """Send SIGUSR1 to the processes of this machine; returns to how many."""
    if not _is_here(holder):
        command = f"python launch/logs.py {folder.digest12} --stacks"
        raise StageError(f"{folder.path.name} runs on {holder['host']}, not here; there type: {command}")
    asked = [pid for pid in _pids(folder, holder) if ask_process(pid)]
    if not asked:
        raise StageError(f"no process of {folder.path.name} listens to SIGUSR1 yet: it is still starting; try again")
    return len(asked)


def _pids(folder: StageFolder, holder: Mapping[str, Any]) -> list[int]:
    """The processes of the attempt under way; the claim names rank 0's."""
    attempts = folder.state()["attempts"]
    return list(attempts[-1].get("pids") or [holder["pid"]]) if attempts else [int(holder["pid"])]


def ask_process(pid: int) -> bool:
    """Send SIGUSR1 to a process that waits for it; any other would be killed by it."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return False
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
    if not caught >> (signal.SIGUSR1 - 1) & 1:
        return False
    os.kill(pid, signal.SIGUSR1)
    return True


def _wait_until_written(before: Mapping[LogFile, int], expected: int, within_s: float) -> None:
    """Until as many logs have grown as processes were asked, and then a moment for the rest of their lines."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if sum(log.path.stat().st_size > size for log, size in before.items()) >= min(expected, len(before)):
            time.sleep(0.2)
            return
        time.sleep(0.05)
