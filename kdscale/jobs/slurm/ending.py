"""How a task of a SLURM job ends: what is written down, and whether its job goes back into the queue."""

from __future__ import annotations

from contextlib import suppress

from kdscale import ranks
from kdscale.errors import StageHeld
from kdscale.jobs.causes import FREE_SPACE, first_cause, wording
from kdscale.jobs.slurm.queue import requeue
from kdscale.jobs.slurm.worker import job_id
from kdscale.jobs.stage_job import CANCELLED, DONE, FAILED, INTERRUPTED, NO_SPACE
from kdscale.pipeline.artifacts import StageFolder

__all__ = ["last_word", "settle"]


def last_word(code: int, folder: StageFolder, attempt: int, rank: int, world: int) -> int:
    """Do what is left to do when a task's work is over, everything being saved; returns its exit code.

    All ranks end with 0 only where the job runs again by itself: SLURM then sees neither a failure, which would cancel
    what waits for it, nor a success before its time.
    """
    if code == INTERRUPTED:
        comes_back = requeue(job_id()) if rank == 0 else False
        with suppress(RuntimeError):  # rank 0's job may be ending already, and with it this group
            comes_back = ranks.broadcast_object(comes_back)
        return DONE if comes_back else INTERRUPTED
    if code in (FAILED, NO_SPACE):
        settle(folder, attempt, world)
    elif code == CANCELLED:
        _write(folder, "cancelled", "cancelled by its user")
    return code


def settle(folder: StageFolder, attempt: int, world: int) -> str | None:
    """Write down why an attempt ended badly, from what its ranks left; returns the state, None when they left nothing.

    Called by the task that fails, and again by whoever looks after the job is gone.
    """
    cause = first_cause(folder.path, attempt, world)
    if cause is None:
        return None
    state = "paused" if cause["disk_full"] else "failed"
    reason = wording(cause)
    if cause["disk_full"] and FREE_SPACE not in reason:
        reason = f"{reason}; {FREE_SPACE}"
    return state if _write(folder, state, reason) else None


def _write(folder: StageFolder, state: str, reason: str) -> bool:
    with suppress(StageHeld, OSError):
        folder.write_state(state=state, reason=reason)
        return True
    return False
