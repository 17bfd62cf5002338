"""What the scheduler says: one question at a time, to squeue and scontrol, which work without accounting."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kdscale.errors import SubmissionError

__all__ = ["Queue", "QueuedJob", "array_limit", "ask", "cancel_jobs", "look", "put_off", "queued_jobs", "requeue"]

TIMEOUT_S = 60.0
DEFAULT_ARRAY_LIMIT = 1001
_GONE = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
)


@dataclass(frozen=True)
class QueuedJob:
    """A job, or one task of an array, that the scheduler will run or runs."""

    id: str
    """123, or 123_4."""
    state: str
    """PENDING, RUNNING, COMPLETING, REQUEUED ..."""
    reason: str
    nodes: str

    @property
    def never(self) -> bool:
        """Whether it waits for what can no longer happen."""
        return self.reason == "DependencyNeverSatisfied"


def ask(*command: str) -> str:
    """Run one of SLURM's commands; returns what it prints.

    Raises:
        SubmissionError: it is missing, fails, or does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise SubmissionError(f"{command[0]} is not here: is this a login node of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise SubmissionError(
            f"{command[0]} has not answered for {TIMEOUT_S:.0f} s: the scheduler is busy or down"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SubmissionError(f"{' '.join(command[:2])}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


@dataclass(frozen=True)
class Queue:
    """One look at the scheduler's queue."""

    jobs: dict[str, QueuedJob]
    """Those that run or will run, by id."""
    ended: dict[str, str]
    """States of those that are over, as long as the scheduler remembers them (MinJobAge, mostly five minutes)."""


def look() -> Queue:
    """Ask for all jobs of this user, in one question. Raises: SubmissionError."""
    queue = Queue({}, {})
    for line in ask("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%r|%N").splitlines():
        name, state, reason, nodes = line.split("|", 3)
        if state in _GONE:
            queue.ended[name] = state
        else:
            queue.jobs[name] = QueuedJob(name, state, reason, nodes)
    return queue


def queued_jobs() -> dict[str, QueuedJob]:
    """All jobs of this user that are not over, by id. Raises: SubmissionError."""
    return look().jobs


def requeue(job: str) -> bool:
    """Put a running job back into the queue; returns whether it will run again by this.

    A job that ends already has been requeued or cancelled by somebody else: it is left to be what they made it, and
    a cancelled one does not come back.
    """
    try:
        if ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").split() != ["RUNNING"]:
            return False
        ask("scontrol", "requeue", job)
    except SubmissionError:
        return False
    return True


def put_off(job: str, wait_s: float, exclude: Sequence[str]) -> None:
    """Let a job that was just requeued wait, and keep it away from nodes. Raises: SubmissionError."""
    changes = [f"StartTime=now+{round(wait_s)}"] if wait_s else []
    if exclude:
        partition = os.environ.get("SLURM_JOB_PARTITION", "")
        where = [f"--partition={partition}"] if partition else []
        there = set(ask("sinfo", "--noheader", "--Node", *where, "--format=%N").split())
        known = re.search(r"ExcNodeList=(\S+)", ask("scontrol", "show", "job", "--oneliner", job))
        already = known.group(1) if known and known.group(1) != "(null)" else ""
        needed = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if len(there - {*exclude, *already.split(",")}) >= needed:  # else it would wait for ever
            changes.append(f"ExcNodeList={','.join(filter(None, [already, *exclude]))}")
    if changes:
        ask("scontrol", "update", f"JobId={job}", *changes)


def cancel_jobs(jobs: Sequence[str]) -> None:
    """Take jobs out of the queue, or end them. Raises: SubmissionError."""
    if jobs:
        ask("scancel", "--quiet", *jobs)


def array_limit() -> int:
    """Most tasks that an array may have here. Raises: SubmissionError."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found.group(1)) - 1) if found else DEFAULT_ARRAY_LIMIT - 1
