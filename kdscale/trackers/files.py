"""What a sweep's folder says right now: its plan, and the state of each unique stage. Reads, never writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdscale.atomic import read_json
from kdscale.errors import ConfigError

__all__ = ["RUNNING", "StageFiles", "SweepFiles", "Trial", "read_sweep"]

RUNNING = frozenset({"running", "evaluating"})


@dataclass(frozen=True)
class StageFiles:
    """One unique stage, as planned and as its state.json says."""

    digest: str
    name: str
    kind: str
    model: str
    parents: Sequence[Mapping[str, str]]
    folder: Path
    """Where it lies or will lie."""
    own: bool
    """Whether it lies in this runs folder, not in a read-only one that is only reused."""
    document: Mapping[str, Any]
    """state.json; empty before there is one."""
    state: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What another stage measured of it: `metrics`, and `sets` by name."""

    @property
    def short(self) -> str:
        """The digest's prefix that screens show."""
        return self.digest[:6]

    @property
    def results(self) -> Mapping[str, Any]:
        """Final figures of a stage that is done; else empty."""
        return (self.document.get("results") or {}) if self.state == "done" else {}

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """Who ran it, when and on what."""
        return self.document.get("attempts") or []

    @property
    def started(self) -> float | None:
        """Unix seconds of the first attempt; None before."""
        times = [a["started"] for a in self.attempts if a.get("started")]
        return min(times) if times else None

    @property
    def ended(self) -> float | None:
        """Unix seconds of the end; None while it runs or waits."""
        if self.state in RUNNING or not self.attempts:
            return None
        return self.attempts[-1].get("ended") or self.document.get("updated")


@dataclass(frozen=True)
class Trial:
    """One point of the sweep with its stages, in order."""

    axes: Mapping[str, str]
    label: str
    swept: Mapping[str, Any]
    stages: Sequence[StageFiles]

    @cached_property
    def last(self) -> StageFiles:
        """The stage that the trial is about: the last one that nothing else of the trial takes from."""
        taken = {p["digest"] for stage in self.stages for p in stage.parents}
        return [s for s in self.stages if s.digest not in taken][-1]

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """The axis values without the seed: trials that differ by seed alone share it."""
        return tuple((axis, value) for axis, value in self.axes.items() if axis != "seed")


@dataclass(frozen=True)
class SweepFiles:
    """A sweep's plan with the present state of its stages."""

    root: Path
    folder: Path
    plan: Mapping[str, Any]
    stages: Mapping[str, StageFiles]
    trials: Sequence[Trial]

    @property
    def name(self) -> str:
        """As the config names it."""
        return str(self.plan["name"])

    @property
    def created(self) -> float:
        """Unix seconds of the plan."""
        return float(self.plan["created"])

    @property
    def running(self) -> bool:
        """Whether any stage runs at this moment."""
        return any(stage.state in RUNNING for stage in self.stages.values())

    def users(self, stage: StageFiles) -> Sequence[Trial]:
        """The trials that a stage belongs to."""
        return self._users.get(stage.digest, ())

    def baseline(self, trial: Trial) -> Trial | None:
        """The trial that differs by one axis alone, whose value there is `ce`; None when there is none."""
        if "ce" in trial.axes.values():
            return None
        for axis in trial.axes:
            found = self._by_axes.get(frozenset({**trial.axes, axis: "ce"}.items()))
            if found:
                return found
        return None

    @cached_property
    def _users(self) -> dict[str, list[Trial]]:
        users: dict[str, list[Trial]] = {}
        for trial in self.trials:
            for stage in trial.stages:
                users.setdefault(stage.digest, []).append(trial)
        return users

    @cached_property
    def _by_axes(self) -> dict[frozenset[tuple[str, str]], Trial]:
        return {frozenset(trial.axes.items()): trial for trial in self.trials}


def read_sweep(root: Path, folder: Path, alive: Callable[[Path], bool] | None = None) -> SweepFiles:
    """Read a sweep.

    Args:
        root: The runs folder.
        folder: The sweep's, below it.
        alive: Says of a stage's folder whether somebody still works in it; a stage that claims to run and is not
            alive counts as interrupted. None believes every state.

    Raises:
        ConfigError: When the folder holds no readable plan.
    """
    try:
        plan = read_json(folder / "plan.json")
    except ValueError as error:
        raise ConfigError(f"{folder / 'plan.json'} is damaged ({error}): launch the sweep again") from error
    if plan is None:
        raise ConfigError(f"{folder} holds no plan.json: it is no sweep")
    places = [root, *(Path(p) for p in os.environ.get("KDSCALE_REUSE", "").split(":") if p)]
    there = [_index(place / "stages") for place in places]
    stages = {digest: _stage(digest, entry, places[0], there, alive) for digest, entry in plan["stages"].items()}
    for stage in [one for one in stages.values() if one.kind == "evaluate" and one.results]:
        trained = next(parent["digest"] for parent in stage.parents if parent["role"] == "student")
        stages[trained] = replace(stages[trained], measured=stage.results)
    trials = [
        Trial(t["axes"], t["label"], t["swept"], [stages[d] for d in t["stages"].values()]) for t in plan["trials"]
    ]
    return SweepFiles(root, folder, plan, stages, trials)


def _stage(
    digest: str,
    entry: Mapping[str, Any],
    root: Path,
    there: Sequence[Mapping[str, Path]],
    alive: Callable[[Path], bool] | None,
) -> StageFiles:
    found = [folders[digest[:12]] for folders in there if digest[:12] in folders]
    folder = found[0] if found else root / entry["folder"]
    document = _state(folder)
    state = str(document.get("state", "waiting"))
    if state in RUNNING and alive is not None and not alive(folder):
        state = "interrupted"
    parents = [p for p in entry["parents"] if p["role"].partition(":")[0] != "data"]
    own = folder.is_relative_to(root)
    return StageFiles(digest, entry["name"], entry["kind"], entry["model"], parents, folder, own, document, state)


def _index(stages: Path) -> dict[str, Path]:
    """Folders by the digest at the end of their names, in one look: a stage keeps the first name it got."""
    try:
        return {name[-12:]: stages / name for name in os.listdir(stages)}
    except FileNotFoundError:
        return {}


def _state(folder: Path) -> Mapping[str, Any]:
    try:
        return read_json(folder / "state.json") or {}
    except ValueError:
        return {}  # damaged: whoever runs the stage says so
