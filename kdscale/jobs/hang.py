"""Notice a rank that hangs, write down where, and end the attempt: other ranks would wait for it for ever.

Each rank watches itself. When it has not got further for most of the time allowed, it says so in a file of its own,
with its step and whether it waits for others; when the time is over, what all ranks have said tells which one hangs:

    one that waits for nobody     it hangs itself
    one that has said nothing     it is stopped, or its node is
    else the one furthest behind  others wait for it

Stacks of all threads go into the log of every rank first.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from kdscale import atomic
from kdscale.jobs.stage_job import HUNG

__all__ = ["HANG_AFTER_S", "Guard", "hung_rank"]

HANG_AFTER_S = 1800.0
SAYS_AFTER = 0.8
"""Share of the time allowed after which a rank says where it stands; the rest is for slow file systems and clocks."""
LOOKS_A_LIMIT = 20
WITHOUT_PYTHON = 1.2
"""Share of the time allowed after which a process ends that can no longer run Python, by a thread that needs none."""


@runtime_checkable
class Progress(Protocol):
    """What tells how far a rank is: `train.stop.Stop`."""

    moved_at: float
    boundaries: int
    step: int


class Guard(threading.Thread):
    """Watches this rank.

    Args:
        logs: of the stage.
        progress: how far this rank is.
        attempt, rank, world: which one this is.
        after_s: without any progress, after which a rank hangs.
    """

    def __init__(self, logs: Path, progress: Progress, attempt: int, rank: int, world: int, after_s: float) -> None:
        super().__init__(name="guard against hanging", daemon=True)
        self._logs, self._progress, self._after_s = logs, progress, after_s
        self._attempt, self._rank, self._world = attempt, rank, world
        self._main = threading.main_thread().ident or 0

    def run(self) -> None:
        """Watch until the process ends."""
        logs = [self._said(rank) for rank in range(self._world)]
        if self._rank == 0:
            for file in logs:
                file.unlink(missing_ok=True)
        said = False
        while True:
            faulthandler.dump_traceback_later(
                WITHOUT_PYTHON * self._after_s, exit=True
            )  # put off, as long as this runs
            time.sleep(self._after_s / LOOKS_A_LIMIT)
            still = time.monotonic() - self._progress.moved_at
            if still < SAYS_AFTER * self._after_s:
                said = False
            elif still < self._after_s:
                if not said:
                    said = True
                    self._say()
            else:
                self._end()

    def _say(self) -> None:
        sys.stdout.flush()
        faulthandler.dump_traceback(all_threads=True)
        stack = sys._current_frames().get(self._main)
        note = {
            "step": self._progress.step, "boundaries": self._progress.boundaries,
            "waits_for_others": _in_a_collective(stack), "host": socket.gethostname(),
        }  # fmt: skip
        atomic.write_json(self._said(self._rank), note)

    def _end(self) -> None:
        notes = {rank: atomic.read_json(self._said(rank)) for rank in range(self._world)}
        rank, how = hung_rank(notes)
        note = notes[rank] or {}
        step = note.get("step", self._progress.step)
        message = f"rank {rank} {how} at step {step} (nothing for {self._after_s / 60:.3g} min); stacks are in its log"
        print(f"{message}; this is rank {self._rank}", flush=True)  # noqa: T201
        document = {
            "rank": rank, "host": note.get("host", ""), "kind": "RankHung", "message": message, "errno": None,
            "disk_full": False, "own": True,
        }  # fmt: skip
        try:
            atomic.write_json(self._logs / f"attempt{self._attempt}-rank{self._rank}.error.json", document)
        finally:
            os._exit(HUNG)

    def _said(self, rank: int) -> Path:
        return self._logs / f"attempt{self._attempt}-rank{rank}.stands.json"


def hung_rank(notes: Mapping[int, Mapping[str, Any] | None]) -> tuple[int, str]:
    """Which rank hangs, and how, by what ranks have said of where they stand; None of one that has said nothing."""
    for rank, note in notes.items():
        if note is not None and not note["waits_for_others"]:
            return rank, "hangs"
    for rank, note in notes.items():
        if note is None:
            return rank, "says nothing, as if its process or node were stopped,"
    rank = min(notes, key=lambda rank: notes[rank]["boundaries"])  # type: ignore[index]
    return rank, "waits for others, as all do,"


def _in_a_collective(stack: FrameType | None) -> bool:
    """Whether the thread with this stack is inside a call that ends only when other ranks make it too.

    The reduction of gradients runs inside the backward pass, where Python sees only that.
    """
    while stack is not None:
        name = stack.f_code.co_filename
        if "torch/distributed" in name or ("torch/autograd" in name and stack.f_code.co_name.startswith("_engine_run")):
            return True
        stack = stack.f_back
    return False
