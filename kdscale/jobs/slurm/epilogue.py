"""What a job's batch script runs when its ranks have not all ended well, before the job itself ends.

    python -m kdscale.jobs.slurm.epilogue CODE        with KDSCALE_RUNS set; CODE is srun's exit code

A rank that is killed can say nothing, and those beside it are killed with it: so the last word is said from outside of
them. A stage that may run again goes back into the queue here, later or elsewhere if need be, and what waits for it
goes on waiting: nobody has to follow a sweep for that. Light: it does not import torch.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.errors import SubmissionError
from kdscale.jobs.causes import causes_of
from kdscale.jobs.prepare import note_cancelled, note_state
from kdscale.jobs.retries import WAITS_S, Verdict, excluded_nodes, judge
from kdscale.jobs.slurm.notes import stages_of
from kdscale.jobs.slurm.place import job_id, meeting_file
from kdscale.jobs.slurm.queue import put_off, requeue
from kdscale.jobs.stage_job import CANCELLED, INTERRUPTED
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["conclude"]

REST = frozenset({"done", "failed", "paused"})
"""States of stages that have been judged, by the process that starts those of a pack."""
LAST_WORDS = 4096
"""Bytes of a job's output, where slurmstepd writes what it saw."""


def conclude(root: Root, job: str, code: int) -> int:
    """Judge the stages of a job whose processes have ended; returns the job's exit code, 0 where it runs again."""
    if code in (INTERRUPTED, CANCELLED):
        return code
    noted = stages_of(root, job)
    stages = [folder for folder in noted if folder.state()["state"] not in REST]
    judged = [(folder, _conclude_one(folder, job, code, packed=len(noted) > 1)) for folder in stages]
    verdicts = [(folder, verdict) for folder, verdict in judged if verdict is not None]
    if stages and not verdicts:
        return CANCELLED if all(folder.state()["state"] == "cancelled" for folder in stages) else code
    again = [(folder, verdict) for folder, verdict in verdicts if verdict.state == "interrupted"]
    if not again or not requeue(job):
        return code
    nodes = sorted({node for folder, _ in again for node in excluded_nodes(folder)})
    with suppress(SubmissionError):  # it then runs again at once, or there: worse, but no loss
        put_off(job, max(verdict.wait_s for _, verdict in again), nodes)
    return 0


def _conclude_one(folder: StageFolder, job: str, code: int, *, packed: bool) -> Verdict | None:
    """Judge one stage and write it down; None where there is nothing to judge."""
    if folder.claimant() is not None:  # another job's ranks have it
        return None
    if folder.cancel_request() is not None or folder.state()["state"] == "cancelled":
        note_cancelled(folder)
        return None
    with suppress(OSError):
        folder.reconcile()
    verdict = _judge(folder, job, code, packed=packed)
    print(f"{folder.path.name}: {verdict.state}: {verdict.reason}", flush=True)  # noqa: T201
    with suppress(OSError):  # the disk may be the very problem
        note_state(folder, verdict.state, verdict.reason)
    return verdict


def _judge(folder: StageFolder, job: str, code: int, *, packed: bool) -> Verdict:
    """Args: packed: the job is several stages', whose processes one of its own started, so that none had to meet."""
    met: dict[str, Any] | None
    if packed:
        met = next(reversed(folder.state()["attempts"]), None)
    else:
        met = atomic.read_json(meeting_file(folder.logs, job))
    causes = causes_of(folder.path, met["attempt"], met["world"]) if met is not None else []
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    node = nodes if os.environ.get("SLURM_JOB_NUM_NODES") == "1" else ""
    where = f" on {nodes}" if nodes else ""
    if _out_of_memory(folder.path.parent.parent / "jobs" / "slurm", job):
        return Verdict("failed", f"job {job} ran out of memory{where}: ask for more by resources.mem_gb")
    how = f"job {job} ended{where} {_wording(code)}"
    if met is None and not packed:
        how += f" before its ranks had met (see {folder.path.parent.parent / 'jobs' / 'slurm'})"
    return judge(folder, causes, how=how, node=node, waits_s=_waits_s())


def _out_of_memory(outputs: Path, job: str) -> bool:
    """Whether SLURM's own cgroup ended a rank: SIGKILL alone may have been anybody's."""
    said = outputs / job.partition("_")[0] / f"{job}_0_log.out"
    with suppress(OSError), said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - LAST_WORDS))
        return re.search(rb"[Dd]etected \d+ oom[-_]kill event", file.read()) is not None
    return False


def _waits_s() -> list[float]:
    """As the profile of this job's site says."""
    said = os.environ.get("KDSCALE_RETRY_AFTER_MIN", "")
    return [60 * float(minutes) for minutes in said.split(",")] if said else list(WAITS_S)


def _wording(code: int) -> str:
    if code <= 128:
        return f"with exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"with exit code {code}"
    return f"by {name}" + (" (out of memory, or killed by somebody)" if name == "SIGKILL" else "")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR2):  # a requeue ends what still runs of the job, and that is this
        signal.signal(number, signal.SIG_IGN)
    sys.exit(conclude(Root.find(Path(os.environ["KDSCALE_RUNS"])), job_id(), int(sys.argv[1])))
