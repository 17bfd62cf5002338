"""Stop stages or a whole sweep for good, at a step boundary and with a checkpoint.

The wish is a file, so that it is heard wherever the stage runs and by a launcher that has not started it yet;
a signal to processes of this machine only makes it heard sooner. Jobs of a cluster that have not begun are withdrawn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kdscale.errors import ConfigError, StageError, SubmissionError
from kdscale.jobs.overview import StageView, SweepView
from kdscale.jobs.prepare import note_state
from kdscale.jobs.search_files import asks_on, hold
from kdscale.jobs.slurm.look import QueueLook, job_ranges
from kdscale.jobs.slurm.notes import jobs_of_stages
from kdscale.jobs.slurm.submit import withdraw
from kdscale.pipeline.artifacts import UNDER_WAY, Root, StageFolder, SweepFolder
from kdscale.pipeline.claims import this
from kdscale.pipeline.names import digests_in, names_in, resolve, sweep_name

__all__ = ["cancel", "stop_stages"]

REST = frozenset({"done", "failed", "cancelled"})
"""States in which there is nothing to cancel."""
POLL_S = 0.2
NOT_YET = "has not stopped yet; python launch/status.py says when it has"
TOLD_APART = 8
"""More stages of which the same is said are counted."""

Said = tuple[str, str, str]
"""Name of a stage, its name in the config, what happened to it."""


def cancel(name: str, root: Root, reason: str, wait_s: float, stages: Sequence[str] = ()) -> Iterator[str]:
    """Cancel what a name means; yields lines that say what happens.

    Args:
        name: a stage or a sweep.
        root: the run root.
        reason: kept with the wish.
        wait_s: how long to wait for the processes to stop.
        stages: of a sweep only these: `student` is all students, `student[crd]` those of the trials with crd.

    Raises:
        ConfigError: a name means nothing, or several things.
        StageError: there is nothing to cancel.
    """
    found = resolve(name, root)
    if isinstance(found, StageFolder):
        if stages:
            raise ConfigError(f"{name} is a stage already; stages are named after a sweep: {' '.join(stages)}")
        yield from _cancel_stage(found, root, name, reason, wait_s)
    elif stages:
        yield from _cancel_some(found, root, stages, reason, wait_s)
    else:
        yield from _cancel_sweep(found, root, reason, wait_s)


def stop_stages(root: Root, digests: Collection[str], reason: str) -> None:
    """Cancel stages for a program that knows which: no word, and no waiting for their end."""
    known = [folder for digest in digests if (folder := root.stage(digest)) is not None]
    asked = [folder for folder in known if _may_stop(folder)]
    for folder in asked:
        _ask(folder, reason, signalled=True)
    for _ in _withdraw(root, [folder.digest for folder in asked]):
        pass


def _may_stop(folder: StageFolder) -> bool:
    return folder.writable and folder.cancel_request() is None and folder.state()["state"] not in REST


def _cancel_stage(folder: StageFolder, root: Root, name: str, reason: str, wait_s: float) -> Iterator[str]:
    state = folder.state()["state"]
    if state in REST and folder.claimant() is None:
        raise StageError(f"{name} is {state}: there is nothing to cancel")
    ran = folder.claimant() is not None
    yield f"{name} {_ask(folder, reason, signalled=True)}"
    yield from _withdraw(root, [folder.digest])
    yield from _wait([(name, folder)] if ran else [], wait_s)


def _cancel_some(sweep: SweepFolder, root: Root, texts: Sequence[str], reason: str, wait_s: float) -> Iterator[str]:
    """The stages of a sweep that any of these texts fits, whoever else needs them: they were named."""
    view = SweepView(sweep, root)
    chosen = {digest for text in texts for digest in digests_in(view.plan, text, view.name)}
    open_stages = [stage for stage in _open(view) if stage.digest in chosen]
    if not open_stages:
        raise StageError(f"{view.name} {' '.join(texts)}: nothing to cancel, all {len(chosen)} of them rest")
    asked = [(stage, _ask(_folder(stage), reason, signalled=True)) for stage in open_stages]
    yield from _told([(stage.name, stage.entry["name"], said) for stage, said in asked])
    yield from _withdraw(root, [stage.digest for stage in open_stages])
    yield from _wait([(stage.name, _folder(stage)) for stage in open_stages if stage.live], wait_s)


def _cancel_sweep(sweep: SweepFolder, root: Root, reason: str, wait_s: float) -> Iterator[str]:
    view = SweepView(sweep, root, asks_queue=True)
    open_stages, launcher = _open(view), sweep.launcher()
    if asks_on(sweep.path):
        hold(sweep.path, reason)  # before any stage's wish, from which it is then told apart
        yield f"{view.name} asks for no more trials; its own command goes on with it"
    elif not open_stages and launcher is None:
        raise StageError(f"{view.name} has nothing to cancel: all its stages rest")
    needed = _needed_elsewhere(sweep, root, view.queue)
    stopped = [stage for stage in open_stages if stage.digest not in needed]
    others = [s for s in open_stages if s.digest in needed]
    # A launcher passes one signal on to its workers; a second would make them end without a checkpoint.
    asked = [(stage, _ask(_folder(stage), reason, signalled=launcher is None)) for stage in stopped]
    yield from _told([(s.name, s.entry["name"], f"goes on: {needed[s.digest]} needs it too") for s in others])
    yield from _told([(stage.name, stage.entry["name"], said) for stage, said in asked])
    yield from _withdraw(root, [stage.digest for stage in stopped])
    if launcher is not None and len(stopped) == len(open_stages):
        yield _signal(launcher, "its launcher")
    yield from _wait([(stage.name, _folder(stage)) for stage in stopped if stage.live], wait_s)


def _open(view: SweepView) -> list[StageView]:
    """The stages of a sweep that can be cancelled."""
    return [s for s in view.stages.values() if s.folder and s.folder.writable and s.status not in REST]


def _folder(stage: StageView) -> StageFolder:
    assert stage.folder is not None
    return stage.folder


def _told(said: Sequence[Said]) -> Iterator[str]:
    """A line for each stage; one for many of which the same is said."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, stage, what in said:
        alike.setdefault((stage, what), []).append(name)
    for (stage, what), names in alike.items():
        if len(names) <= TOLD_APART:
            yield from (f"{name} {what}" for name in names)
        else:
            yield f"{len(names)} x {stage} {what}"


def _withdraw(root: Root, digests: Sequence[str]) -> Iterator[str]:
    """Take out of a cluster's queue what has not begun, and what takes from it; what runs sees the wish by itself."""
    jobs = jobs_of_stages(root)
    blocked = dict(_dependents(root, digests, jobs))
    for digest, (_, _, why) in blocked.items():
        folder = root.stage(digest)
        assert folder is not None
        note_state(folder, "blocked", why)
    yield from _told([(name, stage, f"is blocked: {why}") for name, stage, why in blocked.values()])
    try:
        found = withdraw(root, [*digests, *blocked])
    except SubmissionError as error:
        yield f"{error}; a job that begins sees the wish and ends"
        return
    taken = [job.id for job in found.values() if job.state == "PENDING"]
    if taken:
        yield f"withdrawn from the queue: job{'s' * (len(taken) > 1)} {job_ranges(taken)}"
    begin = [job.id for digest, job in found.items() if job.state == "RUNNING" and _unclaimed(root, digest)]
    if begin:
        yield f"begins this very moment, and ends as soon as it sees the wish: {job_ranges(begin)}"


def _dependents(root: Root, digests: Collection[str], jobs: Collection[str]) -> Iterator[tuple[str, Said]]:
    """Stages of any sweep that wait as jobs for one of these: SLURM would drop them without a word."""
    bad = dict.fromkeys(digests, "")
    if not bad.keys() & jobs:
        return
    for sweep in root.sweeps():
        plan = sweep.plan()
        names = names_in(plan, sweep_name(sweep))
        for digest, entry in plan["stages"].items():  # parents first
            cause = next((p["digest"] for p in entry.get("parents", []) if p["digest"] in bad), None)
            if cause is None or digest in bad or digest not in jobs or not _waits(root, digest):
                continue
            bad[digest] = f"{names[cause].partition(':')[2]} was cancelled"
            yield digest, (names[digest], entry["name"], bad[digest])


def _unclaimed(root: Root, digest: str) -> bool:
    folder = root.stage(digest)
    return folder is not None and folder.claimant() is None


def _waits(root: Root, digest: str) -> bool:
    folder = root.stage(digest)
    if folder is None or not folder.writable or folder.claimant() is not None:
        return False
    return folder.state()["state"] not in {*REST, "blocked"}


def _needed_elsewhere(sweep: SweepFolder, root: Root, queue: QueueLook | None) -> dict[str, str]:
    """Stages of this sweep that another live sweep works on: one with a launcher, or with jobs of its own."""
    needed: dict[str, str] = {}
    own = sweep.plan()["stages"]
    for other in root.sweeps():
        if other.path == sweep.path:
            continue
        stages = other.plan()["stages"]
        waits = queue is not None and any(queue.job(digest) for digest in stages if digest not in own)
        if waits or other.launcher() is not None:
            needed |= dict.fromkeys(stages, other.path.name)
    return needed


def _ask(folder: StageFolder, reason: str, *, signalled: bool) -> str:
    """Leave the wish, and act on it where nobody else will; says what happened."""
    folder.request_cancel(reason)
    before = folder.state()["state"]
    with contextlib.suppress(StageError):  # somebody took it up this very moment, and will see the wish
        folder.write_state(state="cancelled", reason=reason)
    holder = folder.claimant()
    if holder is None:
        return f"cancelled ({'its process was dead' if before in UNDER_WAY else f'it was {before}'})"
    return f"is asked to stop; {_signal(holder, 'its process')}" if signalled else "is asked to stop"


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
    yield from _told([(name, "stage", NOT_YET) for name, _ in running])
