"""A fake: sweeps whose stages only pretend to train, in kdscale's file formats, moved on by hand or by a clock.

What writes the spool is the real `Spool`, and every figure is a function of names and axis values.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from kdscale.trackers.spool import Spool

STARTED = 1_795_200_000.0
STEPS = 400
EVERY = 20
METHODS = {"ce": 0.0, "kd": 0.017, "crd": 0.021}
STUDENTS = {"mine48": (1_180_000, 71e6, 0.80), "mine96": (4_630_000, 268e6, 0.82), "r18": (11_170_000, 557e6, 0.83)}


def noise(*parts: object) -> float:
    """A number in [-1, 1] from the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") / 2**31 - 1


@dataclass
class FakeStage:
    """A stage that somebody pretends to run."""

    folder: Path
    name: str
    digest: str
    model: str
    params: int
    flops: float
    top1: float
    teachers: Sequence[str] = ()
    clock: float = STARTED
    step: int = 0
    saved: tuple[int, int] = (0, 0)
    """Spool length and step of the newest checkpoint."""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    spool: Spool | None = None

    def start(self) -> FakeStage:
        """A new attempt, from the newest checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        definition = {"schema": 1, "kind": "train", "digest": self.digest, "spec": {"name": self.name}, "sweep": "fake"}
        (self.folder / "stage.yaml").write_text(yaml.safe_dump(definition))
        self.step = self.saved[1]
        self.spool = Spool(self.folder / "metrics.jsonl", self.saved[0], steps_per_epoch=STEPS / 10)
        self.attempts.append(
            {"attempt": len(self.attempts) + 1, "host": "node7", "pid": 4711, "world": 2, "engine": "ddp",
             "loader": "ffcv", "device": "cpu", "torch": "2.13.0+cpu", "started": self.clock, "ended": None,
             "resumed_from": self.step, "outcome": None}
        )  # fmt: skip
        self.say("running")
        return self

    def train(self, steps: int) -> FakeStage:
        """Log the next steps; a validation at every tenth of the way."""
        assert self.spool is not None
        for step in range(self.step + 1, self.step + steps + 1):
            self.clock += 1.0
            with patch("time.time", lambda: self.clock):
                if step % EVERY == 0:
                    loss = 2 * math.exp(-5 * step / STEPS) + 0.05 * noise(self.digest, step) + 0.3
                    self.spool.log(step, {"train/loss": loss, "train/term/ce": loss / 2, "train/lr": 0.1})
                if step % (STEPS // 10) == 0:
                    top1 = self.top1 - 0.5 * math.exp(-6 * step / STEPS)
                    self.spool.log(step, {"val/top1": top1, "val/nll": 1 - top1})
        self.step += steps
        self.say("running")
        return self

    def save(self) -> FakeStage:
        """Write a checkpoint."""
        assert self.spool is not None
        self.saved = (self.spool.flush(), self.step)
        return self

    def die(self) -> FakeStage:
        """Killed: nobody says anything."""
        assert self.spool is not None
        os.close(self.spool._file)
        self.spool = None
        return self

    def end(self, state: str, reason: str = "") -> FakeStage:
        """Stop in a state."""
        if self.spool is not None:
            self.spool.close()
            self.spool = None
        self.attempts[-1] |= {"ended": self.clock, "outcome": state}
        self.say(state, reason=reason)
        return self

    def finish(self) -> FakeStage:
        """Train to the end and evaluate."""
        self.train(STEPS - self.step)
        results = {
            "model": self.model, "params": self.params, "flops": self.flops, "top1": self.top1,
            "top5": 1 - (1 - self.top1) / 9, "nll": 1.4 * (1 - self.top1), "ece": 0.012,
            "agreement": dict.fromkeys(self.teachers, 0.95), "kl": dict.fromkeys(self.teachers, 0.1), "best_epoch": 8,
            "best_top1": self.top1 + 0.003, "latency_ms": 0.35 + self.flops / 2.2e7, "latency_p95_ms": 3.0,
            "images_per_s": 3.2e11 / self.flops, "wall_s": float(STEPS), "per_class": [], "class_names": [],
            "extra": {},
        }  # fmt: skip
        assert self.spool is not None
        with patch("time.time", lambda: self.clock):
            self.spool.log(self.step, {"test/top1": self.top1})
        self.end("done")
        self.say("done", results=results)
        return self

    def say(self, state: str, **more: Any) -> None:
        """Write state.json as a stage does: whole."""
        document = {
            "schema": 1, "digest": self.digest, "name": self.name, "state": state, "reason": "", "step": self.step,
            "steps": STEPS, "epoch": self.step / STEPS * 10, "updated": self.clock, "attempts": self.attempts,
            "weights": {}, "consumed": {}, **more,
        }  # fmt: skip
        aside = self.folder / ".state"
        aside.write_text(json.dumps(document))
        aside.replace(self.folder / "state.json")


@dataclass
class FakeSweep:
    """A planned sweep; its stages are found by name and axis values."""

    root: Path
    folder: Path
    stages: dict[str, FakeStage]
    trials: list[dict[str, Any]]

    def stage(self, name: str, **axes: str) -> FakeStage:
        """The stage that the trial with these axis values uses."""
        (trial,) = [t for t in self.trials if all(t["axes"][k] == v for k, v in axes.items())][:1]
        return self.stages[trial["stages"][name]]

    def each(self, name: str) -> list[FakeStage]:
        """All stages of a name, in the order of the trials."""
        return list({t["stages"][name]: self.stages[t["stages"][name]] for t in self.trials}.values())


def plan(
    root: Path,
    name: str = "bench",
    axes: Mapping[str, Sequence[str]] | None = None,
    *,
    uri: str | None = None,
    experiment: str = "kdscale",
    digest: str = "",
) -> FakeSweep:
    """Plan a sweep of teacher -> student; the teacher is shared by all trials.

    Axes `method` and `student` decide figures; any other axis only makes other stages.
    """
    axes = {"method": ["ce", "kd"], "seed": ["0", "1"]} if axes is None else axes
    stages: dict[str, FakeStage] = {}
    entries: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        chosen = {}
        for stage, of in (("teacher", {}), ("student", point)):
            made = _stage(root, stage, of)
            stages.setdefault(made.digest, made)
            entries.setdefault(made.digest, _entry(made, chosen))
            chosen[stage] = made.digest
        label = " · ".join(f"s{v}" if axis == "seed" else v for axis, v in point.items()) or "only"
        trials.append({"axes": point, "label": label, "stages": chosen, "swept": _swept(point)})
    digest = digest or hashlib.sha256(json.dumps([name, trials]).encode()).hexdigest()
    folder = root / "sweeps" / f"{name}-{digest[:8]}"
    folder.mkdir(parents=True)
    document = {
        "schema": 1, "name": name, "digest": digest, "created": STARTED - 10,
        "axes": {a: list(v) for a, v in axes.items()},
        "command": f"python launch/sweep.py configs/{name}.yaml", "config_path": f"configs/{name}.yaml",
        "trials": trials, "stages": entries, "tracking": {"uri": uri, "experiment": experiment, "ship": "auto"},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(document))
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": name, "seed": 0}))
    return FakeSweep(root, folder, stages, trials)


def _swept(point: Mapping[str, str]) -> dict[str, Any]:
    swept: dict[str, Any] = {"seed": int(point["seed"])} if "seed" in point else {}
    return swept | ({"stages.student.student.width": int(point["student"][-2:])} if "student" in point else {})


def _stage(root: Path, name: str, axes: Mapping[str, str]) -> FakeStage:
    digest = hashlib.sha256(json.dumps([name, dict(axes)]).encode()).hexdigest()
    folder = root / "stages" / f"{name}-{digest[:12]}"
    if name == "teacher":
        return FakeStage(folder, name, digest, "resnet_cifar depth=56", 855_770, 126e6, 0.871)
    params, flops, top1 = STUDENTS[axes.get("student", "mine48")]
    method = axes.get("method", "kd")
    top1 += METHODS[method] + 0.003 * noise(sorted(axes.items()))
    taught = () if method == "ce" else ("t",)
    model = f"birds.nets:TinyNet {axes.get('student', '')}".strip()
    return FakeStage(folder, name, digest, model, params, flops, top1, taught)


def _entry(stage: FakeStage, chosen: Mapping[str, str]) -> dict[str, Any]:
    parents = [{"role": "t", "digest": chosen["teacher"], "selector": "last"}] if chosen else []
    return {
        "name": stage.name, "kind": "train", "folder": f"stages/{stage.folder.name}", "parents": parents,
        "depth": len(parents), "model": stage.model, "reused": False,
        "cost": {"steps": STEPS, "epochs": 10, "params": stage.params, "flops": stage.flops, "train_flops": 1e12,
                 "bytes": 10_000, "inodes": 12},
    }  # fmt: skip
