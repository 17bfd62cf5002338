"""Brings a sweep's runs on a tracking server up to what its files say, and never twice.

Every pass may be repeated, interrupted anywhere and run by several processes: one of them at a time holds the
destination's lock; points keep the step and time of the spool; a high-water step for each metric is recorded after it
was shipped, and read back from the server whenever a shipper starts or a pass has failed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdscale.trackers.destination import Destination, root_id
from kdscale.trackers.files import SweepFiles, read_sweep
from kdscale.trackers.ledger import Entry, Ledger
from kdscale.trackers.mlflow import Known, Point, RunGone, Server, ServerAway
from kdscale.trackers.shape import RunShape, metric_name, shapes_of
from kdscale.trackers.spool import read_lines
from kdscale.trackers.tail import goes_on, mark_at, whole_lines

__all__ = ["Report", "Shipper"]


@dataclass
class Report:
    """What one pass did."""

    uri: str
    runs: int = 0
    """Runs of the sweep that the server has now."""
    points: int = 0
    """Metric values shipped by this pass."""
    problems: list[str] = field(default_factory=list)
    busy: bool = False
    """Another process was shipping; nothing was done."""


class Shipper:
    """Ships sweeps of one runs folder to one destination."""

    def __init__(self, root: Path, to: Destination, alive: Callable[[Path], bool] | None = None) -> None:
        """Connects to nothing yet.

        Args:
            root: The runs folder.
            to: Where to.
            alive: Says of a stage's folder whether somebody works in it; None believes what states say.
        """
        self._root, self._to, self._alive = root.absolute(), to, alive
        self._server: Server | None = None
        self._recovered: set[Path] = set()
        self._ledgers: dict[Path, Ledger] = {}

    def ship(
        self, folder: Path, *, open_: bool = False, wait_s: float = 30.0, stage: Path | None = None
    ) -> Report:  # fmt: skip
        """Make one pass over a sweep; never raises for the server's sake.

        Args:
            folder: The sweep's.
            open_: Whether somebody goes on working on it (decides how what waits is shown).
            wait_s: How long to wait for another process that ships to the same place.
            stage: Folder of the only stage that matters; its trials and the sweep's own run come with it.

        Raises:
            ConfigError: When the folder is no sweep.
        """
        report = Report(str(self._to))
        try:
            with FileLock(self._lock_file(), timeout=wait_s):
                self._pass(folder.absolute(), report, open_=open_, stage=stage)
        except Timeout:
            report.busy = True
        except (ServerAway, OSError) as error:
            # What was asked last may or may not have happened: ask the server before going on.
            self._server = None
            self._recovered.clear()
            report.problems.append(str(error))
        return report

    # ------------------------------------------------------------------ one pass

    def _pass(self, folder: Path, report: Report, *, open_: bool, stage: Path | None) -> None:
        self._server = self._server or Server(self._to, root_id(self._root))
        self._ledgers = {path: ledger for path, ledger in self._ledgers.items() if ledger.unchanged}
        sweep = read_sweep(self._root, folder, self._alive)
        shapes = [shape for shape in shapes_of(sweep, open_=open_) if stage is None or _concerns(shape, stage)]
        try:
            if folder not in self._recovered:
                self._recover(self._server, sweep, shapes)
                self._recovered.add(folder)
            parent: str | None = None
            for shape in shapes:
                entry = self._ship_run(self._server, shape, parent, report)
                parent = parent or entry.run_id  # the sweep's own run comes first
            for shape in shapes:
                self._upload(self._server, shape)
        finally:
            for ledger in self._ledgers.values():
                ledger.save()

    def _ship_run(self, server: Server, shape: RunShape, parent: str | None, report: Report) -> Entry:
        """Bring one run up to date, made if there is none."""
        ledger = self._ledger(shape)
        entry = ledger.get(shape.key)
        if entry is None:
            entry = Entry(server.create(shape, parent), owner=shape.once["kdscale.sweep_id"])
            ledger.put(shape.key, entry)
            server.params(entry.run_id, shape.params)
        if entry.deleted:
            return entry
        report.runs += 1
        try:
            report.points += self._figures(server, shape, entry) + self._curves(server, shape, entry)
            self._describe(server, shape, entry)
        except RunGone as error:
            raise ServerAway(f"{shape.name}: its run has gone from the server ({error})") from error
        return entry

    def _figures(self, server: Server, shape: RunShape, entry: Entry) -> int:
        """Ship final figures that are new or have changed."""
        new = {n: v for n, v in shape.figures.items() if not _same(entry.figures.get(metric_name(n)), v)}
        points: list[Point] = [(metric_name(n), v, shape.at, 0) for n, v in new.items()]
        if points:
            server.points(entry.run_id, points)
            entry.figures |= {name: value for name, value, _, _ in points}
        return len(points)

    def _curves(self, server: Server, shape: RunShape, entry: Entry) -> int:
        """Ship what the spool has behind the high-water steps."""
        if shape.spool is None or not shape.spool.exists():
            return 0
        shipped = 0
        with shape.spool.open("rb") as file:
            if not goes_on(file, entry.offset, entry.mark):
                entry.offset = entry.mark = 0
            for content in whole_lines(file, entry.offset):
                points, steps = _behind(content, entry.steps, shape.curves)
                server.points(entry.run_id, points)
                entry.steps = steps
                entry.offset += len(content)
                entry.mark = mark_at(file, entry.offset)
                shipped += len(points)
        return shipped

    def _describe(self, server: Server, shape: RunShape, entry: Entry) -> None:
        tags = {**shape.tags, "kdscale.level": shape.level, "kdscale.state": shape.state}
        described = _digest([tags, shape.status, shape.ended])
        if described != entry.described:
            server.describe(entry.run_id, {n: v for n, v in tags.items() if v}, shape.status, shape.ended)
            entry.described = described
        noted = _digest(shape.note)
        if noted != entry.noted and entry.owner == shape.once["kdscale.sweep_id"]:
            server.tag(entry.run_id, {"mlflow.note.content": shape.note})
            entry.noted = noted

    def _upload(self, server: Server, shape: RunShape) -> None:
        """Files come last: a server without room for artifacts still gets every number."""
        entry = self._ledger(shape).get(shape.key)
        if entry is None or entry.deleted:
            return
        for path in shape.documents:
            signature = _signature(path)
            if entry.uploads.get(path.name) != signature:
                server.upload(entry.run_id, path)
                entry.uploads[path.name] = signature
        if shape.config and "config.yaml" not in entry.uploads and all(path.exists() for _, path in shape.config):
            server.upload_text(entry.run_id, _config(shape.config), "config.yaml")
            entry.uploads["config.yaml"] = "once"

    # ------------------------------------------------------------------ what the server already has

    def _recover(self, server: Server, sweep: SweepFiles, shapes: Sequence[RunShape]) -> None:
        """Bring the ledgers in line with the server; of runs made twice keep one."""
        found: dict[str, list[Known]] = {}
        for known in server.runs({"kdscale.sweep_id": sweep.folder.name}):
            found.setdefault(known.key, []).append(known)
        for shape in shapes:
            twins = found.get(shape.key)
            if twins is None and shape.level == "stage":  # another sweep may have run it first
                twins = server.runs({"kdscale.key": shape.key})
            self._adopt(server, shape, twins or [])

    def _adopt(self, server: Server, shape: RunShape, twins: Sequence[Known]) -> None:
        ledger = self._ledger(shape)
        entry = ledger.get(shape.key)
        if not twins:
            ledger.drop(shape.key)
            return
        alive = [known for known in twins if not known.deleted]
        chosen = next((k for k in alive if entry and k.run_id == entry.run_id), alive[0] if alive else twins[0])
        for ghost in alive:
            if ghost is not chosen:  # a request that was answered too late for us had been carried out
                server.remove(ghost.run_id)
        ledger.put(shape.key, _recovered(entry, chosen, shape))
        missing = {name: value for name, value in shape.params.items() if name not in chosen.params}
        if missing and not chosen.deleted:
            server.params(chosen.run_id, missing)

    def _ledger(self, shape: RunShape) -> Ledger:
        if shape.ledger not in self._ledgers:
            self._ledgers[shape.ledger] = Ledger(shape.ledger, self._to.id)
        return self._ledgers[shape.ledger]

    def _lock_file(self) -> str:
        self._to.lock.parent.mkdir(parents=True, exist_ok=True)
        return str(self._to.lock)


def _concerns(shape: RunShape, stage: Path) -> bool:
    return shape.level in ("sweep", "group") or (shape.spool is not None and shape.spool.parent == stage)


def _behind(content: bytes, steps: Mapping[str, int], prefixes: tuple[str, ...]) -> tuple[list[Point], dict[str, int]]:
    """Points behind each metric's high-water step, and the new marks."""
    marks, points = dict(steps), []
    for line in read_lines(content):
        for raw, value in line.metrics.items():
            name = metric_name(raw)
            if name.startswith(prefixes) and line.step > marks.get(name, -1):
                points.append((name, value, line.time, line.step))
                marks[name] = line.step
    return points, marks


def _recovered(entry: Entry | None, known: Known, shape: RunShape) -> Entry:
    """The entry as the server knows it; what was recorded stays where both agree."""
    steps = {name: step for name, step in known.steps.items() if name not in {metric_name(n) for n in shape.figures}}
    if entry is None or entry.run_id != known.run_id:
        entry = Entry(known.run_id, owner=known.owner)
    if entry.steps != steps:
        entry.steps, entry.offset, entry.mark = steps, 0, 0
    entry.figures = {name: value for name, value in known.values.items() if name not in steps}
    entry.deleted = known.deleted
    if known.status != shape.status:
        entry.described = ""
    return entry


def _config(definitions: Sequence[tuple[str, Path]]) -> str:
    """All stages' definitions as one file of YAML documents."""
    return "".join(f"--- # stage {name}\n{path.read_text()}" for name, path in definitions)


def _signature(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size}-{found.st_mtime_ns}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (math.isnan(old) and math.isnan(new)))
