"""One task of a SLURM job that runs several stages side by side, each with processes of its own (`resources.pack`).

    job (1 task) -> a local run of its stages -> warm parent -> workers, forked

Small stages leave most of a node, or of a GPU, idle, and each job of theirs would import everything anew. Within the
job they are what a local run makes of them: a worker that dies goes on from its checkpoint, one that fails leaves the
others alone. The job itself is put back into the queue where any was interrupted, and ends well where each one rests.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kdscale.jobs.slurm.place import job_id

if TYPE_CHECKING:  # what follows imports much; a signal in the first seconds would find nobody listening
    from kdscale.jobs.local import LocalRun
    from kdscale.pipeline.artifacts import StageFolder
    from kdscale.pipeline.planned import Plan

__all__ = ["run_pack"]

REST = frozenset({"done", "failed", "cancelled", "paused"})
"""Of a job that comes back, the stages that it leaves as they are."""


class _Wishes:
    """What signals and the clock have asked for, to be acted on between two looks at the workers."""

    def __init__(self) -> None:
        self.reason = ""
        self.stacks = False
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._heard)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)

    def ask(self, reason: str) -> None:
        """Ask all stages to save themselves and to stop."""
        self.reason = self.reason or reason

    def _heard(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGUSR1:
            self.stacks = True
        else:
            self.ask(f"asked to stop by {signal.Signals(number).name}")


def run_pack(root: str, digests: Sequence[str], threads: int) -> NoReturn:
    """Run these stages side by side, and end the process.

    Args:
        root: of the runs.
        digests: of the stages.
        threads: of each process of theirs: the cores that it has in this job.
    """
    wishes = _Wishes()
    code = 1
    try:
        code = _run(Path(root), digests, threads, wishes)
    except BaseException:  # noqa: BLE001 - the process ends here, and the batch script judges its stages
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(path: Path, digests: Sequence[str], threads: int, wishes: _Wishes) -> int:
    from kdscale.data.download import forbid_downloads
    from kdscale.jobs.local import LocalRun
    from kdscale.jobs.shipping import shipper_of_job
    from kdscale.jobs.slurm.parents import may_begin
    from kdscale.jobs.slurm.worker import keep_time
    from kdscale.jobs.warm import WarmParent
    from kdscale.pipeline.artifacts import Root

    forbid_downloads()
    root = Root.find(path)
    folders = [folder for digest in digests if (folder := root.stage(digest)) is not None]
    able = [folder for folder in folders if folder.state()["state"] not in REST and may_begin(root, folder)]
    print(f"job {job_id()}: {len(able)} of {len(digests)} stages, side by side", flush=True)  # noqa: T201
    if not able:
        return 0
    warm = WarmParent()
    local = LocalRun(root, _plan(able), _say, parallel=len(able), warm=warm, threads=threads)
    keep_time(wishes)
    shippers = [(folder, shipper_of_job(path, folder, 0)) for folder in able]
    local.run(lambda: _tick(local, wishes))
    warm.close()
    return _end(local, shippers)


def _tick(local: LocalRun, wishes: _Wishes) -> None:
    from kdscale.jobs.stacks import ask_process

    if wishes.reason and not local.stopped:
        _say(wishes.reason)
        local.ask_to_stop()
    if wishes.stacks:
        wishes.stacks = False
        for pid in (pid for pids in local.workers().values() for pid in pids):
            ask_process(pid)


def _end(local: LocalRun, shippers: Sequence[tuple[StageFolder, object]]) -> int:
    """Bring the last metrics; come back where a stage is to go on."""
    from kdscale.jobs.shipping import ship_the_end
    from kdscale.jobs.slurm.queue import requeue
    from kdscale.jobs.stage_job import CANCELLED, DONE, FAILED, INTERRUPTED

    codes = {"done": DONE, "failed": FAILED, "cancelled": CANCELLED}
    for folder, shipper in shippers:
        ship_the_end(shipper, codes.get(str(folder.state()["state"]), INTERRUPTED), 0)  # type: ignore[arg-type]
    goes_on = any(state in ("interrupted", "waiting") for state in local.states.values())
    return INTERRUPTED if local.stopped and goes_on and not requeue(job_id()) else DONE


def _plan(folders: Sequence[StageFolder]) -> Plan:
    """These stages alone: what they take from has been looked at."""
    from kdscale.pipeline.cost import Cost
    from kdscale.pipeline.planned import Plan, PlannedStage

    definitions = {folder: folder.definition() for folder in folders}
    stages = {
        folder.digest: PlannedStage(
            folder.digest, folder.path.name, kind=definition["kind"], parents={}, depth=0, model="", cost=Cost(),
            definition=definition,
        )
        for folder, definition in definitions.items()
    }  # fmt: skip
    return Plan("pack", "", {}, [], stages, tracking={})


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
