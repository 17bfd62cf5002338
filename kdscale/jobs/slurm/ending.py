"""How a task of a SLURM job ends that has saved itself: its job is put back into the queue, unless it was cancelled."""

from __future__ import annotations

from contextlib import suppress

from kdscale import ranks
from kdscale.jobs.prepare import note_cancelled
from kdscale.jobs.slurm.place import job_id
from kdscale.jobs.slurm.queue import requeue
from kdscale.jobs.stage_job import CANCELLED, DONE, INTERRUPTED
from kdscale.pipeline.artifacts import StageFolder

__all__ = ["last_word"]


def last_word(code: int, folder: StageFolder, rank: int) -> int:
    """Do what is left to do when a task's work is over, everything being saved; returns its exit code.

    All ranks end with 0 where the job runs again by itself: SLURM then sees neither a failure, which would cancel what
    waits for it, nor a success before its time. An attempt that ended badly is the batch script's to judge (epilogue).
    """
    if code == INTERRUPTED:
        comes_back = requeue(job_id()) if rank == 0 else False
        with suppress(RuntimeError):  # rank 0's job may be ending already, and with it this group
            comes_back = ranks.broadcast_object(comes_back)
        return DONE if comes_back else INTERRUPTED
    if code == CANCELLED and rank == 0:
        with suppress(OSError):
            note_cancelled(folder)
    return code
