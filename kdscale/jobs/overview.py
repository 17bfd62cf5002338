"""How far a sweep is, read from its files as cheaply as a screen needs that looks twice a second.

A state file is read again only when it changed, a spool only from where the last look ended.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.pipeline.artifacts import UNDER_WAY, Root, StageFolder, SweepFolder
from kdscale.pipeline.names import names_in, sweep_name

__all__ = ["ORDER", "STYLE", "StageView", "SweepView", "Tail"]

ORDER = (
    "failed", "paused", "lost", "cancelled", "blocked", "interrupted", "evaluating", "running", "starting", "queued",
    "waiting", "done",
)  # fmt: skip
"""States as shown, what needs a person first. `lost`: its process is dead and nobody has said so yet."""

STYLE = {
    "failed": "bold red", "paused": "yellow", "lost": "yellow", "cancelled": "yellow", "blocked": "yellow",
    "interrupted": "yellow", "evaluating": "cyan", "running": "cyan", "starting": "cyan", "done": "green",
}  # fmt: skip
"""Colour of a state wherever it is shown; never the only sign of it."""

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

    def refresh(self) -> None:
        """Look again."""
        if self.folder is None:
            return
        self._read_state()
        said = str(self.state["state"])
        self.holder = None if said == "done" else self.folder.claimant()
        if said in UNDER_WAY:
            self.status = said if self.live else "lost"
        else:
            self.status = "starting" if self.live else said
        if self.live:
            self.tail = self.tail or Tail(self.folder.metrics)
            self.tail.refresh()

    def _read_state(self) -> None:
        assert self.folder is not None
        try:
            found = (self.folder.path / "state.json").stat()
        except FileNotFoundError:
            return
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self.state, self._stamp = self.folder.state(), stamp


class SweepView:
    """One sweep as it is now.

    Args:
        sweep: its folder.
        root: where its stages are looked for; by default the root that it lies in.

    Raises:
        ConfigError: it has no plan.
    """

    def __init__(self, sweep: SweepFolder, root: Root | None = None) -> None:
        self.folder = sweep
        self.plan = sweep.plan()
        self.name = sweep_name(sweep)
        root = root or sweep.root
        folders = {folder.digest12: folder for folder in root.stages()}
        names = names_in(self.plan, self.name)
        self.stages = {
            digest: StageView(digest, names[digest], entry, folders.get(digest[:12]))
            for digest, entry in self.plan["stages"].items()
        }
        self.refresh()

    def refresh(self) -> None:
        """Look again at every stage."""
        for stage in self.stages.values():
            stage.refresh()

    def counts(self) -> Counter[str]:
        """How many stages are in each state."""
        return Counter(stage.status for stage in self.stages.values())

    def in_state(self, *states: str) -> list[StageView]:
        """The stages in any of these states, parents first."""
        found = [stage for stage in self.stages.values() if stage.status in states]
        return sorted(found, key=lambda stage: stage.entry.get("depth", 0))

    def waits_for(self, stage: StageView) -> list[StageView]:
        """The stages that must be done before it can start."""
        parents = (self.stages.get(digest) for digest in stage.parents)
        return [parent for parent in parents if parent is not None and parent.status != "done"]

    @property
    def over(self) -> bool:
        """Whether nothing moves any more: nobody works, and no launcher lives."""
        return self.folder.launcher() is None and not any(stage.live for stage in self.stages.values())

    def hours(self) -> dict[str, float]:
        """Process hours that this sweep's own stages took, by kind: CPU-h, GPU-h."""
        hours: dict[str, float] = {}
        for stage in (s for s in self.stages.values() if not s.entry.get("reused")):
            for attempt in stage.state.get("attempts", []):
                unit = "CPU-h" if str(attempt.get("device", "cpu")).startswith("cpu") else "GPU-h"
                ended = attempt.get("ended") or (time.time() if stage.live else stage.state["updated"])
                spent = (ended - attempt["started"]) / 3600 * attempt.get("world", 1)
                hours[unit] = hours.get(unit, 0.0) + spent
        return {unit: round(spent, 3) for unit, spent in hours.items()}

    def seconds_left(self) -> float | None:
        """A guess at when all is done, from the FLOPs left and the pace at which they are computed now."""
        pace, left = 0.0, 0.0
        for stage in self.stages.values():
            flops = float(stage.entry.get("cost", {}).get("train_flops") or 0.0)
            share = 1 - stage.step / stage.steps if stage.steps else 1.0
            if stage.status not in ("done", "failed", "blocked", "cancelled", "paused"):
                left += flops * share
            own = stage.seconds_left()
            if own and share > 0:
                pace += flops * share / own
        return left / pace if pace else None
