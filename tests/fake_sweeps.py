"""Sweeps that never trained: made through kdscale's own folders, with figures that a test can foretell."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.pipeline.artifacts import Claim, Root, StageFolder, SweepFolder

STARTED = 1_795_200_000.0


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class Fake:
    """A sweep in the making: `data -> teacher -> student` over axes, or whatever `parents` says."""

    root: Root
    name: str = "birds"
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parents: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"data": [], "teacher": ["data"], "student": ["teacher", "data"]}
    )
    of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Axes that a stage depends on; by default all for the last stage, none for the others."""
    steps: int = 1000

    def __post_init__(self) -> None:
        names = list(self.parents)
        of = {name: self.of.get(name, list(self.axes) if name == names[-1] else []) for name in names}
        self.stages: dict[str, Any] = {}
        self.trials: list[dict[str, Any]] = []
        for values in itertools.product(*self.axes.values()):
            axes = dict(zip(self.axes, values, strict=True))
            chosen = {name: digest_of(self.name, name, [axes[a] for a in of[name]]) for name in names}
            for name in names:
                self.stages.setdefault(chosen[name], self._entry(name, chosen))
            trained = {name: digest for name, digest in chosen.items() if name != "data"}
            label = " · ".join(f"s{v}" if a == "seed" else v for a, v in axes.items()) or "only"
            self.trials.append({"axes": axes, "label": label, "stages": trained, "swept": {}})
        self.sweep = self._write()

    def _entry(self, name: str, chosen: Mapping[str, str]) -> dict[str, Any]:
        parents = [
            {"role": p, "digest": chosen[p], "selector": "store" if p == "data" else "last"} for p in self.parents[name]
        ]
        depth = 1 + max((self.stages[p["digest"]]["depth"] for p in parents), default=-1)
        convert = name == "data"
        kind = "convert" if convert else "fill" if name.endswith("-cache") else "train"
        return {
            "name": name, "kind": kind, "folder": f"stages/{name}-{chosen[name][:12]}",
            "parents": parents, "depth": depth, "model": "fashion_mnist" if convert else "resnet_cifar depth=20",
            "cost": {"steps": 0 if convert else self.steps, "epochs": 10, "params": 270_000, "flops": 40_000_000,
                     "train_flops": 0 if convert else 10**12, "bytes": 9_000_000, "inodes": 35},
            "reused": False, "because": "not made yet",
        }  # fmt: skip

    def _write(self) -> SweepFolder:
        digest = digest_of(self.name, sorted(self.stages))
        sweep = self.root.create_sweep(self.name, digest)
        plan = {
            "schema": 1, "name": self.name, "digest": digest, "created": STARTED,
            "command": f"python launch/sweep.py configs/{self.name}.yaml", "config_path": f"configs/{self.name}.yaml",
            "axes": {a: list(v) for a, v in self.axes.items()}, "trials": self.trials, "stages": self.stages,
            "tracking": {"uri": None, "experiment": "kdscale"},
        }  # fmt: skip
        sweep.plan_file.write_text(json.dumps(plan))
        for digest, entry in self.stages.items():
            parents = {p["role"]: {"digest": p["digest"], "selector": p["selector"]} for p in entry["parents"]}
            self.root.create_stage(entry["name"], digest).define(
                {"schema": 1, "kind": entry["kind"], "digest": digest, "name": entry["name"], "parents": parents,
                 "spec": {"name": entry["name"], "train": {"epochs": 10}}, "sweep": sweep.path.name}
            )  # fmt: skip
        return sweep

    def folder(self, stage: str, *values: str) -> StageFolder:
        """A stage's folder by name and all values of its axes."""
        found = self.root.stage(digest_of(self.name, stage, list(values)))
        assert found is not None
        return found

    def all(self) -> list[StageFolder]:
        return [folder for digest in self.stages if (folder := self.root.stage(digest)) is not None]


def finish(folder: StageFolder, top1: float | None = 0.9, wall_s: float = 120.0, **state: Any) -> None:
    """Make a stage done, with one attempt."""
    attempt = {"attempt": 1, "started": STARTED, "ended": STARTED + wall_s, "outcome": "done", "world": 2,
               "device": "cpu (x86_64)", "host": "node7", "pid": 1, "resumed_from": 0}  # fmt: skip
    results = {"top1": top1, "wall_s": wall_s} if top1 is not None else {"wall_s": wall_s}
    known = {"state": "done", "step": 1000, "steps": 1000, "epoch": 10.0, "attempts": [attempt], "results": results}
    folder.write_state(**{**known, **state})


def begin(folder: StageFolder, started: float = STARTED, **attempt: Any) -> Claim:
    """Claim a stage for this process and say that it runs."""
    claim = folder.claim({"started": started, "world": 2, "device": "cpu (x86_64)", "resumed_from": 0, **attempt})
    folder.write_state(state="running", steps=1000)
    return claim


def log(folder: StageFolder, step: int, when: float, **metrics: float) -> None:
    """Append a line to a stage's spool; `train__loss` is train/loss."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    line = {"step": step, "epoch": step / 100, "time": when, "metrics": named}
    with folder.metrics.open("a") as file:
        file.write(json.dumps(line) + "\n")


def fill(path: Path, size: int) -> Path:
    """A file of a size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path
