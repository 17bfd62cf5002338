"""A plan: unique stages, trials, and how both are written to plan.json."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.cost import Cost

__all__ = ["FRESH", "NEW", "Plan", "PlannedStage", "PlannedTrial", "Reuse", "label_of", "search_digest"]


@dataclass(frozen=True)
class Reuse:
    """The verdict on one stage."""

    done: bool
    state: str = "waiting"
    """What the stage's folder says; waiting when there is none, lost when its process is gone."""
    because: str = "not made yet"
    replace: bool = False
    """The folder holds something that must make way before the stage runs."""


NEW = Reuse(done=False)
"""Nothing is known of it."""
FRESH = "--fresh asks for it"
"""Why a stage that is there is made anew when its user wants that."""


@dataclass(frozen=True)
class PlannedStage:
    """One unique stage over all trials."""

    digest: str
    name: str
    kind: str
    """`train`, `convert` (data), `fill` (a teacher's cache) or `evaluate` (own metrics, further test sets)."""
    parents: dict[str, tuple[str, str]]
    """Role (a teacher's name, init_from, data) to (digest, selector)."""
    depth: int
    model: str
    cost: Cost
    definition: dict[str, Any]
    """What stage.yaml will hold."""
    reuse: Reuse = NEW

    @property
    def folder(self) -> str:
        """Relative to the runs root."""
        return f"stages/{self.name}-{self.digest[:12]}"

    @property
    def processes(self) -> int:
        """That work on it together."""
        return 1 if self.kind == "convert" else int(self.definition["spec"]["engine"]["processes"])

    @property
    def imported(self) -> bool:
        """Whether it only measures a network that came from elsewhere."""
        spec = self.definition["spec"]
        return self.kind == "train" and "weights" in spec["student"] and spec.get("train", {}).get("epochs") == 0


@dataclass(frozen=True)
class PlannedTrial:
    """One trial: which unique stage each of its stages is."""

    axes: dict[str, str]
    label: str
    stages: dict[str, str]
    swept: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep needs."""

    name: str
    digest: str
    axes: dict[str, list[str]]
    trials: list[PlannedTrial]
    stages: dict[str, PlannedStage]
    """By digest, parents first."""
    tracking: dict[str, Any]
    config_path: str = ""
    command: str = ""
    limits: dict[str, Any] = field(default_factory=dict)
    cite: dict[str, str] = field(default_factory=dict)
    """BibTeX entries of the recipe, by name."""

    @property
    def folder_name(self) -> str:
        """Under runs/sweeps."""
        return f"{self.name}-{self.digest[:8]}"

    @property
    def todo(self) -> list[PlannedStage]:
        """Stages that are not done yet, parents first."""
        return [stage for stage in self.stages.values() if not stage.reuse.done]

    @property
    def measured_first(self) -> set[str]:
        """Imported networks that are not measured yet, and what that needs: a wrong one is to spoil nothing."""
        first: set[str] = set()
        for stage in reversed(self.todo):
            if stage.imported or stage.digest in first:
                first |= {stage.digest, *(parent for parent, _ in stage.parents.values())}
        return first & {stage.digest for stage in self.todo}

    def part(self, trials: Iterable[PlannedTrial], also: Iterable[str] = ()) -> Plan:
        """The plan of some of its trials and of some more stages, by digest: these, and all that they take from."""
        some = list(trials)
        wanted = {digest for trial in some for digest in trial.stages.values()} | set(also)
        for digest in reversed(self.stages):
            if digest in wanted:
                wanted |= {parent for parent, _ in self.stages[digest].parents.values()}
        return replace(self, trials=some, stages={d: stage for d, stage in self.stages.items() if d in wanted})

    def document(self) -> dict[str, Any]:
        """As plan.json holds it."""
        return {
            "schema": 1, "name": self.name, "digest": self.digest, "created": time.time(), "command": self.command,
            "config_path": self.config_path, "axes": self.axes, "trials": [asdict(trial) for trial in self.trials],
            "stages": {digest: _entry(stage) for digest, stage in self.stages.items()}, "tracking": self.tracking,
            "cite": self.cite,
        }  # fmt: skip


def _entry(stage: PlannedStage) -> dict[str, Any]:
    found = {
        "name": stage.name, "kind": stage.kind, "folder": stage.folder, "depth": stage.depth, "model": stage.model,
        "parents": [{"role": r, "digest": d, "selector": s} for r, (d, s) in stage.parents.items()],
        "cost": stage.cost.document(), "reused": stage.reuse.done, "because": stage.reuse.because,
    }  # fmt: skip
    if stage.kind == "train" and (export := stage.definition["spec"].get("export")) is not None:
        found["export"] = export
    if "caches" in stage.definition:
        found["caches"] = {
            role: CacheNeed.of(cache["need"]).entry | {"filled_by": cache["filled_by"]}
            for role, cache in stage.definition["caches"].items()
        }
    return found


def label_of(axes: Mapping[str, str]) -> str:
    """A trial's name on screens: its axis values; a bare seed is written s0."""
    return " · ".join(f"s{value}" if axis == "seed" else value for axis, value in axes.items()) or "only"


def search_digest(corners: Plan, identity: Mapping[str, Any]) -> str:
    """The digest of a search: its trials come later, so it is that of its space's corners and of its settings."""
    return hashlib.sha256(json.dumps([corners.digest, identity], sort_keys=True).encode()).hexdigest()
