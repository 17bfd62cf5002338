"""One stage as it is now: its state, set right by who lives and by what the scheduler has, and its newest figures.

A state file is read again only when it changed, a spool only from where the last look ended.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.jobs.slurm.look import QueueLook
from kdscale.jobs.slurm.queue import QueuedJob
from kdscale.pipeline.artifacts import UNDER_WAY, StageFolder
from kdscale.report.rating import RATINGS, said

__all__ = ["StageView", "Tail"]

IN_QUEUE = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED"})
"""States of a job that does not run now, but will."""
UNITS = {"convert": " rows", "fill": " blocks", "evaluate": " rows"}
"""What stages count that do not count steps."""
SETTLED = frozenset({"done", "failed", "cancelled", "blocked", "paused"})
"""States that a job still in the queue does not change: it is about to end, or to be withdrawn."""

FIRST_READ_BYTES = 256 * 1024
"""A spool is not read from its beginning: what is shown stands in its last lines."""


class Tail:
    """The newest value of each metric in a spool that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._read = 0
        self._rest = b""
        self.latest: dict[str, float] = {}
        self.step = 0
        self._marks: list[tuple[float, int]] = []

    def refresh(self) -> None:
        """Read what was appended; a spool that was cut on resume is read again."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size < self._read:
            self._begin()
        if size == self._read:
            return
        if not self._read:
            self._read = max(0, size - FIRST_READ_BYTES)
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = self._rest + file.read()
            self._read = file.tell()
        *lines, self._rest = content.split(b"\n")
        for line in lines:
            self._take(line)

    @property
    def written(self) -> float:
        """When its newest line was written, unix time; 0 before the first."""
        return self._marks[-1][0] if self._marks else 0.0

    def seconds_per_step(self, since: float) -> float | None:
        """Wall time a step, evaluations and all, over the lines written after `since` (unix time)."""
        marks = [(t, step) for t, step in self._marks if t >= since]
        if len(marks) >= 2 and marks[-1][1] > marks[0][1]:
            return (marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1])
        return self.latest.get("time/step_s")

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            metrics = {str(name): float(value) for name, value in entry["metrics"].items()}
            mark = float(entry["time"]), int(entry["step"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        self.latest |= metrics
        self.step = mark[1]
        self._marks = [*self._marks[-200:], mark]


@dataclass
class StageView:
    """One stage of a sweep as it is now."""

    digest: str
    name: str
    """Name that can be pasted into any command."""
    entry: dict[str, Any]
    """Its line in plan.json."""
    folder: StageFolder | None
    state: dict[str, Any] = field(default_factory=lambda: {"state": "waiting"})
    status: str = "waiting"
    holder: dict[str, Any] | None = None
    tail: Tail | None = None
    job: QueuedJob | None = None
    """Where a scheduler has it."""
    gone: str = ""
    """The job that it was and that the scheduler no longer has, though nobody says how it ended."""
    _stamp: tuple[int, int] = (0, 0)

    @property
    def short(self) -> str:
        """The name without the sweep's."""
        return self.name.partition(":")[2]

    @property
    def live(self) -> bool:
        """Whether a process works on it."""
        return self.holder is not None

    @property
    def step(self) -> int:
        """Steps done: by the state file, or by a spool that is ahead of it."""
        known = int(self.state.get("step", 0))
        return max(known, self.tail.step) if self.tail and self.status in UNDER_WAY else known

    @property
    def steps(self) -> int:
        """Steps in all; 0 when nobody knows yet."""
        return int(self.state.get("steps") or self.entry.get("cost", {}).get("steps") or 0)

    @property
    def attempt(self) -> dict[str, Any]:
        """The newest attempt; empty before the first."""
        attempts = self.state.get("attempts") or [{}]
        return dict(attempts[-1])

    @property
    def parents(self) -> list[str]:
        """Digests of the stages it takes from."""
        return [parent["digest"] for parent in self.entry.get("parents", [])]

    @property
    def top1(self) -> float | None:
        """Final top-1 on test."""
        return (self.state.get("results") or {}).get("top1")

    @property
    def validated(self) -> str:
        """Newest validation top-1, or mIoU, which says so; empty before there is any."""
        top1, miou = self.metric("val/top1"), self.metric("val/miou")
        return f"{RATINGS['miou']} {miou:.4f}" if miou is not None else "" if top1 is None else f"{top1:.4f}"

    @property
    def unit(self) -> str:
        """What its steps are, to stand behind their number; empty where they are steps."""
        return UNITS.get(self.entry.get("kind", "train"), "")

    @property
    def images_per_s(self) -> float | None:
        """Of training while it trains; of filling once a cache is filled, where anything was to be."""
        filled = (self.state.get("results") or {}).get("images_per_s") if self.entry.get("kind") == "fill" else None
        return filled or self.metric("train/images_per_s")

    @property
    def outcome(self) -> str:
        """The figure of a finished stage: a network's accuracy, or how fast a cache was filled."""
        if found := said(self.state.get("results") or {}):
            return found
        return f"{self.images_per_s:,.0f} images/s" if self.status == "done" and self.images_per_s else ""

    def metric(self, name: str) -> float | None:
        """The newest value of a metric while the stage runs."""
        return self.tail.latest.get(name) if self.tail else None

    def seconds_left(self) -> float | None:
        """Until the last step, at the pace of this attempt; None when nothing is known."""
        if self.tail is None or self.status != "running" or not self.steps:
            return None
        pace = self.tail.seconds_per_step(self.attempt.get("started", 0.0)) or self._pace_so_far()
        return None if pace is None else max(0.0, (self.steps - self.step) * pace)

    def _pace_so_far(self) -> float | None:
        """Seconds a step since the attempt began, setting up included: better than nothing before the first figures."""
        attempt = self.attempt
        done = self.step - int(attempt.get("resumed_from") or 0)
        return (self.state["updated"] - attempt["started"]) / done if done > 0 and "started" in attempt else None

    def wall_s(self) -> float:
        """Seconds over all attempts, the one under way until now."""
        now = time.time()
        return float(sum((a.get("ended") or now) - a["started"] for a in self.state.get("attempts", [])))

    def refresh(self, look: QueueLook | None = None) -> None:
        """Look again; `look` knows of its job."""
        if self.folder is None:
            return
        self._read_state()
        said = str(self.state["state"])
        self.holder = None if said == "done" else self.folder.claimant()
        self.job = look.job(self.digest) if look is not None else None
        lost = look is not None and not self.live and look.gone(self.digest, float(self.state["updated"]))
        self.gone = look.jobs[self.digest] if look is not None and lost and said in ("queued", *UNDER_WAY) else ""
        self.status = self._status(said)
        if self.live:
            self.tail = self.tail or Tail(self.folder.metrics)
            self.tail.refresh()

    def _status(self, said: str) -> str:
        """What its state file says, set right by who lives and by what the scheduler has."""
        if self.live:
            return said if said in UNDER_WAY else "starting"
        if self.job is not None and said not in SETTLED:
            if self.job.state in IN_QUEUE:
                return "queued"
            return "lost" if said in UNDER_WAY and not self._began_again() else "starting"
        return "lost" if said in UNDER_WAY or self.gone else said

    def _began_again(self) -> bool:
        """Whether its job's run is another than the one that claimed it; a hung one lives on without a heartbeat."""
        last = self.folder.last_claim() if self.folder else None
        return last is None or self.job is None or (self.job.starts or 0.0) > float(last["since"])

    def _read_state(self) -> None:
        assert self.folder is not None
        try:
            found = (self.folder.path / "state.json").stat()
        except FileNotFoundError:
            return
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self.state, self._stamp = self.folder.state(), stamp
