"""What a sweep left on disk, read as it is now: nothing here waits for a stage to be done.

Only the files of a run folder are read (plan.json, state.json, metrics.jsonl, step0.json, views.npz), so a
report can be made while stages run, after they were moved, and on a machine without torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kdscale import atomic
from kdscale.errors import ConfigError, StageError
from kdscale.report.rating import RATINGS, rated

__all__ = ["ENDED_BADLY", "PRUNED", "Curves", "Parent", "StageRecord", "SweepRecord", "TrialRecord", "axis_value"]

Curves = dict[str, list[tuple[float, float]]]
"""Metric name -> (epoch, value) in the order of training."""

PRUNED = "pruned by the search"
"""How the reason of a stage begins that a search has stopped."""

ENDED_BADLY = ("failed", "paused", "blocked", "cancelled")
"""States that a person has to look at, worst first."""


class Parent(NamedTuple):
    """An edge of the stage graph: whose snapshot is consumed, and as what."""

    role: str
    digest: str
    selector: str


class StageRecord:
    """One unique stage: its line of the plan and whatever its folder holds by now.

    Args:
        digest: the stage's whole digest.
        entry: its line in plan.json.
        folder: where it was found; None as long as nobody made it.
    """

    def __init__(self, digest: str, entry: Mapping[str, Any], folder: Path | None) -> None:
        self.digest = digest
        self.folder = folder
        self.name: str = entry["name"]
        self.kind: str = entry.get("kind", "train")
        self.parents = [Parent(p["role"], p["digest"], p.get("selector", "last")) for p in entry.get("parents", [])]
        self.depth: int = entry.get("depth", 0)
        self.cost: dict[str, Any] = entry.get("cost") or {}
        self.reused: bool = bool(entry.get("reused"))
        self.caches: dict[str, dict[str, Any]] = entry.get("caches") or {}
        """Of teachers that a cache answers for, by role: what it holds and who fills it."""
        self.measured_by: StageRecord | None = None
        """The stage that measures own metrics and further test sets of its network."""
        self._model: str = entry.get("model") or ""

    @cached_property
    def state(self) -> dict[str, Any]:
        """state.json, or a waiting state before there is one."""
        return self._json("state.json") or {"state": "waiting"}

    @property
    def status(self) -> str:
        """One of the states of a stage."""
        return str(self.state.get("state", "waiting"))

    @property
    def done(self) -> bool:
        """Whether the stage has final figures."""
        return self.status == "done"

    @property
    def pruned(self) -> bool:
        """Whether a search has stopped it early, which is how it should be."""
        return self.status == "cancelled" and str(self.state.get("reason", "")).startswith(PRUNED)

    @property
    def results(self) -> dict[str, Any]:
        """Final figures, with what was measured of it besides; empty until the stage is done."""
        own = self.state.get("results") or {} if self.done else {}
        further = self.measured_by.results if own and self.measured_by is not None else {}
        extra = {name: further[name] for name in ("metrics", "sets") if further.get(name)}
        return own | {"extra": (own.get("extra") or {}) | extra} if extra else own

    @property
    def rating(self) -> float | None:
        """On test: top-1, or mIoU where pixels have classes."""
        found = rated(self.results)
        return found[1] if found else None

    @property
    def model(self) -> str:
        """The network in words, e.g. `resnet_cifar depth=20`."""
        return str(self.results.get("model") or self._model)

    @property
    def params(self) -> int | None:
        """Parameters: as built, else as planned."""
        return self.results.get("params") or self.cost.get("params")

    @property
    def flops(self) -> int | float | None:
        """FLOPs of one image's forward pass: as measured, else as planned."""
        return self.results.get("flops") or self.cost.get("flops")

    @property
    def ensemble_top1(self) -> float | None:
        """Test top-1 of the ensemble that it hears, which is no stage; the best of several, None without one."""
        theirs = self.results.get("teacher_top1") or {}
        roles = {parent.role for parent in self.parents}
        return max((top1 for name, top1 in theirs.items() if name not in roles), default=None)

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Who ran it, where and when, oldest first."""
        return list(self.state.get("attempts") or [])

    @cached_property
    def definition(self) -> dict[str, Any]:
        """stage.yaml; empty before there is one."""
        path = self.folder / "stage.yaml" if self.folder else None
        return dict(yaml.safe_load(path.read_text()) or {}) if path and path.exists() else {}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label; empty where nothing says them."""
        known = self.results.get("class_names")
        return [str(n) for n in known or self.definition.get("data", {}).get("info", {}).get("class_names", [])]

    @property
    def terms(self) -> list[dict[str, Any]]:
        """The terms of the loss before the first step, from step0.json."""
        return list((self._json("step0.json") or {}).get("terms") or [])

    @cached_property
    def curves(self) -> Curves:
        """Every metric over the epochs; a line that is still being written is left out."""
        curves: Curves = {}
        for line in self._lines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            for name, value in entry.get("metrics", {}).items():
                curves.setdefault(name, []).append((float(entry.get("epoch", 0.0)), float(value)))
        return curves

    def last(self, metric: str) -> float | None:
        """The newest value of a metric in the spool."""
        points = self.curves.get(metric)
        return points[-1][1] if points else None

    def _lines(self) -> Iterable[str]:
        path = self.folder / "metrics.jsonl" if self.folder else None
        return path.read_text(errors="replace").splitlines() if path and path.exists() else ()

    def _json(self, name: str) -> dict[str, Any] | None:
        if self.folder is None:
            return None
        try:
            content: dict[str, Any] | None = atomic.read_json(self.folder / name)
        except ValueError as error:
            raise StageError(
                f"{self.folder / name} is damaged ({error}): `python launch/runs.py rm {self.digest[:12]}` "
                "forgets the stage, the next launch makes it anew"
            ) from None
        return content


@dataclass(frozen=True)
class TrialRecord:
    """One point of the sweep: axis values, and the digest of each of its stages in file order."""

    axes: dict[str, str]
    label: str
    stages: dict[str, str]
    swept: dict[str, Any]


class SweepRecord:
    """One sweep folder.

    Args:
        path: runs/sweeps/<name>-<digest8>.

    Raises:
        ConfigError: the folder holds no plan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        plan = atomic.read_json(path / "plan.json")
        if not isinstance(plan, dict):
            raise ConfigError(f"{path} holds no plan.json: name a sweep folder (`python launch/runs.py ls` lists them)")
        self.plan: dict[str, Any] = plan
        self.name: str = plan["name"]
        roots = [path.parent.parent, *(Path(p) for p in os.environ.get("KDSCALE_REUSE", "").split(os.pathsep) if p)]
        self.stages = {
            digest: StageRecord(digest, entry, _folder(roots, digest, entry))
            for digest, entry in plan["stages"].items()
        }
        for stage in self.stages.values():
            if stage.kind == "evaluate":
                self.stages[stage.parents[0].digest].measured_by = stage
        self.trials = [
            TrialRecord(dict(t.get("axes") or {}), t.get("label") or "", dict(t["stages"]), dict(t.get("swept") or {}))
            for t in plan["trials"]
        ]
        self.axes: dict[str, list[str]] = {name: list(values) for name, values in (plan.get("axes") or {}).items()}

    @cached_property
    def short(self) -> str:
        """The name to print: as short as it still means this sweep alone."""
        others = [p for p in self.path.parent.glob(f"{self.name}-*") if len(p.name) == len(self.name) + 9]
        return self.name if len(others) <= 1 else self.path.name

    @property
    def trained(self) -> list[StageRecord]:
        """All unique stages that train or import a network, parents first."""
        return sorted((s for s in self.stages.values() if s.kind == "train"), key=lambda s: s.depth)

    @cached_property
    def rated_by(self) -> str:
        """The word for what its networks are rated by."""
        return next((found[0] for stage in self.trained if (found := rated(stage.results))), RATINGS["top1"])

    def stage(self, trial: TrialRecord, name: str) -> StageRecord:
        """A trial's stage by name."""
        return self.stages[trial.stages[name]]

    def final(self, trial: TrialRecord) -> str:
        """Name of the stage a trial is about: nothing of the trial consumes it."""
        used = {p.digest for digest in trial.stages.values() for p in self.stages[digest].parents}
        names = [n for n, d in trial.stages.items() if self.stages[d].kind == "train"]
        last = [n for n in names if trial.stages[n] not in used] or names
        return "student" if "student" in last else last[-1]

    def teachers(self, stage: StageRecord) -> list[StageRecord]:
        """The networks that a stage learns from, in the order of the config."""
        taught = (p for p in stage.parents if p.role != "init_from" and not p.role.startswith("terms."))
        parents = (self.stages.get(p.digest) for p in taught)
        return [p for p in parents if p is not None and p.kind == "train"]

    def name_of(self, stage: StageRecord) -> str:
        """A name of the stage that can be pasted into any command, e.g. `bench:student[crd,s1]`."""
        same_name = {s.digest for s in self.stages.values() if s.name == stage.name}
        if same_name == {stage.digest}:
            return f"{self.short}:{stage.name}"
        used = stage.parents[0].digest if stage.kind == "evaluate" else stage.digest
        users = [t.axes for t in self.trials if used in t.stages.values()]
        if not users:
            return stage.digest[:12]
        shared = {a: v for a, v in users[0].items() if len({u.get(a) for u in users}) == 1}
        values = [f"{a}={v}" if self._ambiguous(a, v) else axis_value(a, v) for a, v in shared.items()]
        return f"{self.short}:{stage.name}[{','.join(values)}]"

    def _ambiguous(self, axis: str, value: str) -> bool:
        """Whether a value alone could be of another axis, too."""
        said = axis_value(axis, value)
        return any(said == axis_value(a, v) for a, values in self.axes.items() if a != axis for v in values)

    def local_name(self, stage: StageRecord) -> str:
        """The name without the sweep, where only one sweep is spoken of."""
        return self.name_of(stage).partition(":")[2] or stage.name

    @cached_property
    def config(self) -> str:
        """sweep.yaml, as text."""
        path = self.path / "sweep.yaml"
        return path.read_text() if path.exists() else ""


def axis_value(axis: str, value: str) -> str:
    """An axis value as it stands in names: a seed of 1 is `s1`."""
    return f"s{value}" if axis == "seed" else value


def _folder(roots: Sequence[Path], digest: str, entry: Mapping[str, Any]) -> Path | None:
    """Find a stage's folder: where it was planned, else by digest in any root (the first name stays)."""
    planned: Path = roots[0] / entry.get("folder", "")
    if entry.get("folder") and planned.is_dir():
        return planned
    for root in roots:
        for found in sorted(root.glob(f"stages/*-{digest[:12]}")):
            if not found.name.startswith("replaced-"):
                return found
    return None
