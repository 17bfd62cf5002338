"""Stop a stage or a whole sweep for good, at a step boundary and with a checkpoint.

The wish is a file, so that it is heard wherever the stage runs and by a launcher that has not started it yet;
a signal to processes of this machine only makes it heard sooner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdscale.errors import StageError, SubmissionError
from kdscale.jobs.overview import SweepView
from kdscale.jobs.slurm.submit import withdraw
from kdscale.pipeline.artifacts import UNDER_WAY, Root, StageFolder, SweepFolder
from kdscale.pipeline.claims import this
from kdscale.pipeline.names import resolve

__all__ = ["cancel"]

REST = frozenset({"done", "failed", "cancelled"})
"""States in which there is nothing to cancel."""
POLL_S = 0.2


def cancel(name: str, root: Root, reason: str, wait_s: float) -> Iterator[str]:
    """Cancel what a name means; yields lines that say what happens.

    Args:
        name: a stage or a sweep.
        root: the run root.
        reason: kept with the wish.
        wait_s: how long to wait for the processes to stop.

    Raises:
        ConfigError: the name means nothing, or several things.
        StageError: there is nothing to cancel.
    """
    found = resolve(name, root)
    if isinstance(found, StageFolder):
        yield from _cancel_stage(found, root, name, reason, wait_s)
    else:
        yield from _cancel_sweep(found, root, reason, wait_s)


def _cancel_stage(folder: StageFolder, root: Root, name: str, reason: str, wait_s: float) -> Iterator[str]:
    state = folder.state()["state"]
    if state in REST and folder.claimant() is None:
        raise StageError(f"{name} is {state}: there is nothing to cancel")
    ran = folder.claimant() is not None
    yield _ask(folder, name, reason, signalled=True)
    yield from _withdraw(root, [folder.digest])
    yield from _wait([(name, folder)] if ran else [], wait_s)


def _cancel_sweep(sweep: SweepFolder, root: Root, reason: str, wait_s: float) -> Iterator[str]:
    view = SweepView(sweep, root)
    open_stages = [s for s in view.stages.values() if s.folder and s.folder.writable and s.status not in REST]
    launcher = sweep.launcher()
    if not open_stages and launcher is None:
        raise StageError(f"{view.name} has nothing to cancel: all its stages rest")
    needed = _needed_elsewhere(sweep, root)
    asked = []
    for stage in open_stages:
        assert stage.folder is not None
        if stage.digest in needed:
            yield f"{stage.name} goes on: {needed[stage.digest]} needs it too"
            continue
        # A launcher passes one signal on to its workers; a second would make them end without a checkpoint.
        yield _ask(stage.folder, stage.name, reason, signalled=launcher is None)
        if stage.live:
            asked.append((stage.name, stage.folder))
    yield from _withdraw(root, [s.digest for s in open_stages if s.digest not in needed])
    if launcher is not None and not needed.keys() & {stage.digest for stage in open_stages}:
        yield _signal(launcher, "its launcher")
    yield from _wait(asked, wait_s)


def _withdraw(root: Root, digests: Sequence[str]) -> Iterator[str]:
    """Take out of a cluster's queue what has not begun; what runs sees the wish by itself."""
    try:
        withdraw(root, digests)
    except SubmissionError as error:
        yield f"{error}; a job that begins sees the wish and ends"


def _needed_elsewhere(sweep: SweepFolder, root: Root) -> dict[str, str]:
    """Stages of this sweep that another sweep with a live launcher works on, and that sweep's name."""
    needed: dict[str, str] = {}
    for other in root.sweeps():
        if other.path != sweep.path and other.launcher() is not None:
            needed |= dict.fromkeys(other.plan()["stages"], other.path.name)
    return needed


def _ask(folder: StageFolder, name: str, reason: str, *, signalled: bool) -> str:
    """Leave the wish, and act on it where nobody else will."""
    folder.request_cancel(reason)
    before = folder.state()["state"]
    with contextlib.suppress(StageError):  # somebody took it up this very moment, and will see the wish
        folder.write_state(state="cancelled", reason=reason)
    holder = folder.claimant()
    if holder is None:
        return f"{name} cancelled ({'its process was dead' if before in UNDER_WAY else f'it was {before}'})"
    if not signalled:
        return f"{name} is asked to stop"
    return f"{name} is asked to stop; {_signal(holder, 'its process')}"


def _signal(holder: Mapping[str, Any], whom: str) -> str:
    """Make a process of this machine hear the wish at once."""
    here = this()
    if (holder["host"], holder["namespace"]) != (here["host"], here["namespace"]):
        return f"{whom} on {holder['host']} sees it within 10 s of work"
    try:
        os.kill(holder["pid"], signal.SIGTERM)
    except ProcessLookupError:
        return f"{whom} has just ended"
    except PermissionError:
        return f"{whom} ({holder['pid']}) is another user's; it sees the wish within 10 s of work"
    return f"{whom} ({holder['pid']}) is told: a checkpoint comes first"


def _wait(running: list[tuple[str, StageFolder]], wait_s: float) -> Iterator[str]:
    """Say what became of those that were running."""
    deadline = time.monotonic() + wait_s
    while running:
        for name, folder in list(running):
            if folder.claimant() is None:
                running.remove((name, folder))
                yield f"{name} stopped at step {folder.state()['step']:,}"
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S if running else 0)
    for name, _ in running:
        yield f"{name} has not stopped yet; python launch/status.py says when it has"
