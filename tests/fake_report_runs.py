"""Sweeps that never ran: run folders in kdscale's formats with made-up figures, for tests of what only reads them.

Every number is a function of names and axis values, so a test can say what must come out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
STARTED = 1_795_200_000.0
STEPS_PER_EPOCH = 421
HARDNESS = [0.02, 0.07, -0.05, 0.0, -0.06, 0.06, -0.17, 0.05, 0.06, 0.05]
PROGRESS = {"done": 1.0, "running": 0.55, "evaluating": 1.0, "failed": 0.3, "interrupted": 0.6, "paused": 0.4}
REASONS = {
    "failed": "NonFiniteLoss: term kd became nan or inf at step 1204 on rank 0. Lower train.lr or set train.grad_clip",
    "paused": "no space left on /lustre/me (140.0 of 140 GB)",
    "blocked": "a stage it takes from has failed",
    "interrupted": "the launcher was stopped (Ctrl-C)",
}

Values = Mapping[str, str]


@dataclass(frozen=True)
class FakeStage:
    """One stage of every trial.

    `of` names the axes that its digest depends on (None: all); `teachers` maps a role to a stage's name.
    """

    name: str
    model: str = "resnet_cifar depth=20"
    params: int = 270_000
    flops: float = 41e6
    teachers: Mapping[str, str] = field(default_factory=dict)
    of: Sequence[str] | None = None
    top1: float = 0.9
    kind: str = "train"
    terms: Sequence[str] = ("ce",)
    cached: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Roles of teachers that a cache answers for, with the stages that fill it."""
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def taught(self) -> list[str]:
        """Roles of real teachers."""
        return [role for role in self.teachers if role != "data" and not role.startswith("cache:")]


def _slightly_random(stage: FakeStage, values: Values) -> float:
    return stage.top1 + 0.004 * noise(stage.name, sorted(values.items()))


def _done(stage: FakeStage, values: Values) -> str:
    return "done"


def _unchanged(stage: FakeStage, values: Values) -> FakeStage:
    return stage


@dataclass(frozen=True)
class Fiction:
    """What a made-up sweep tells; functions take a stage and the axis values it depends on."""

    top1: Callable[[FakeStage, Values], float] = _slightly_random
    state: Callable[[FakeStage, Values], str] = _done
    change: Callable[[FakeStage, Values], FakeStage] = _unchanged
    exclude: Sequence[Values] = ()
    reused: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    images: NDArray[np.uint8] | None = None
    epochs: int = 12
    expect: Sequence[Mapping[str, Any]] = ()


def noise(*parts: object) -> float:
    """A number in [-1, 1] from the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") / 2**31 - 1


def digest_of(name: str, values: Values) -> str:
    return hashlib.sha256(json.dumps([name, dict(values)]).encode()).hexdigest()


def write_sweep(
    runs: Path,
    name: str,
    stages: Sequence[FakeStage],
    axes: Mapping[str, Sequence[str]] | None = None,
    tale: Fiction | None = None,
) -> Path:
    """Write a whole run folder; returns the sweep's folder."""
    axes, tale = axes or {}, tale or Fiction()
    planned: dict[str, Any] = {}
    trials = []
    for values in _trials(axes, tale.exclude):
        chosen: dict[str, str] = {}
        for general in stages:
            own = {a: values[a] for a in (general.of if general.of is not None else axes)}
            stage, digest = tale.change(general, own), digest_of(general.name, own)
            if digest not in planned:
                planned[digest] = _entry(stage, digest, chosen, planned, tale)
                _write_stage(runs, stage, digest, own, planned[digest], tale)
            chosen[stage.name] = digest
        kept = {n: d for n, d in chosen.items() if planned[d]["kind"] == "train"}
        label = " · ".join(f"s{v}" if a == "seed" else v for a, v in values.items())
        trials.append({"axes": values, "label": label, "stages": kept, "swept": values})
    digest = digest_of(name, {a: ",".join(v) for a, v in axes.items()})
    folder = runs / "sweeps" / f"{name}-{digest[:8]}"
    folder.mkdir(parents=True)
    plan = {
        "schema": 1, "name": name, "digest": digest, "created": STARTED,
        "command": f"python launch/sweep.py configs/{name}.yaml", "config_path": f"configs/{name}.yaml",
        "axes": {a: list(v) for a, v in axes.items()}, "trials": trials, "stages": planned,
        "tracking": {"uri": "sqlite:///runs/mlflow.db", "experiment": "kdscale"},
        "expect": list(tale.expect),
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan, indent=1))
    config = tale.config or {"name": name, "seed": 0, "train": {"epochs": tale.epochs, "lr": 0.1}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return folder


def _trials(axes: Mapping[str, Sequence[str]], exclude: Sequence[Values]) -> Iterator[dict[str, str]]:
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        if not any(all(values.get(k) == v for k, v in e.items()) for e in exclude):
            yield values


def _entry(stage: FakeStage, digest: str, chosen: Values, known: Mapping[str, Any], tale: Fiction) -> dict[str, Any]:
    parents = [
        {"role": role, "digest": chosen[name], "selector": "store" if role == "data" else "last"}
        for role, name in stage.teachers.items()
        if name in chosen
    ]
    entry = {
        "name": stage.name, "kind": stage.kind, "folder": f"stages/{stage.name}-{digest[:12]}", "parents": parents,
        "depth": 1 + max((known[p["digest"]]["depth"] for p in parents), default=-1), "model": stage.model,
        "cost": {
            "steps": STEPS_PER_EPOCH * tale.epochs, "epochs": tale.epochs, "params": stage.params,
            "flops": stage.flops, "train_flops": stage.flops * 3 * 54_000 * tale.epochs, "bytes": stage.params * 8,
            "inodes": 12, "forwards": STEPS_PER_EPOCH * 128 * tale.epochs * (1 + len(stage.taught) - len(stage.cached)),
            "images": STEPS_PER_EPOCH * 128 * tale.epochs,
        },
        "reused": stage.name in tale.reused,
    }  # fmt: skip
    if stage.cached:
        entry["caches"] = {
            role: {
                "need": digest_of(stage.teachers[role], {})[:12], "teacher": chosen[stage.teachers[role]], "views": 3,
                "record": "dense", "record_bytes": 20, "block_rows": 512, "filled_by": [chosen[name] for name in fills],
            }
            for role, fills in stage.cached.items()
        }  # fmt: skip
    return entry


def _write_stage(
    runs: Path, stage: FakeStage, digest: str, values: Values, entry: Mapping[str, Any], tale: Fiction
) -> None:
    state = tale.state(stage, values)
    if state == "waiting":
        return
    folder = runs / entry["folder"]
    folder.mkdir(parents=True)
    info = {"classes": 10, "channels": 1, "size": 28, "class_names": CLASSES}
    (folder / "stage.yaml").write_text(yaml.safe_dump({"schema": 1, "digest": digest, "data": {"info": info}}))
    share, top1 = PROGRESS.get(state, 0.0), tale.top1(stage, values)
    steps = stage.results.get("blocks", STEPS_PER_EPOCH * tale.epochs)
    document: dict[str, Any] = {
        "schema": 1, "digest": digest, "name": stage.name, "state": state, "reason": REASONS.get(state, ""),
        "step": int(steps * share), "steps": steps, "epoch": tale.epochs * share, "updated": STARTED + 900,
        "attempts": [_attempt(share)] if share else [], "weights": {}, "consumed": {},
    }  # fmt: skip
    if state == "done" and stage.kind == "train":
        document["results"] = _results(stage, top1, values, tale) | dict(tale.results)
    if state == "done" and stage.kind in ("fill", "evaluate"):
        document["results"] = dict(stage.results)
    (folder / "state.json").write_text(json.dumps(document))
    if stage.kind == "train" and share:
        lines = [*_training_lines(stage, top1, steps, share), *_validation_lines(stage, top1, tale.epochs, share)]
        lines.sort(key=lambda line: line["step"])
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        _write_first_look(folder, stage, values, tale)


def _attempt(share: float) -> dict[str, Any]:
    ended = {"ended": STARTED + 300, "outcome": "done"} if share == 1 else {"ended": None, "outcome": None}
    return {
        "attempt": 1, "host": "node7", "pid": 4711, "world": 2, "engine": "ddp", "loader": "ffcv", "device": "cpu",
        "torch": "2.13.0+cpu", "python": "3.11.2", "kdscale": "0.1.0", "precision": "bf16", "threads": 1,
        "started": STARTED, "resumed_from": 0, **ended,
    }  # fmt: skip


def _results(stage: FakeStage, top1: float, values: Values, tale: Fiction) -> dict[str, Any]:
    key = sorted(values.items())
    return {
        "model": stage.model, "params": stage.params, "flops": stage.flops, "top1": top1, "top5": 1 - (1 - top1) / 9,
        "nll": 1.4 * (1 - top1), "ece": 0.012 + 0.006 * abs(noise("ece", stage.name, key)),
        "agreement": {role: 0.95 - 0.3 * (1 - top1) for role in stage.taught},
        "kl": dict.fromkeys(stage.taught, 0.08), "best_epoch": tale.epochs - 2, "best_top1": top1 + 0.003,
        "latency_ms": 0.35 + stage.flops / 2.2e7, "latency_p95_ms": 0.5 + stage.flops / 2e7,
        "images_per_s": 3.2e11 / stage.flops, "wall_s": 40 + stage.flops / 4e5,
        "per_class": [min(1.0, max(0.0, top1 + h + 0.01 * noise(key, i))) for i, h in enumerate(HARDNESS)],
        "class_names": CLASSES, "test_rows": 10_000, "extra": {},
    }  # fmt: skip


def _training_lines(stage: FakeStage, top1: float, steps: int, share: float) -> Iterator[dict[str, Any]]:
    for step in range(50, int(steps * share) + 1, 50):
        done = step / steps
        loss = 2.0 * math.exp(-5 * done) + 1.6 * (1 - top1) + 0.03 * noise(stage.name, top1, step)
        metrics = {"train/loss": loss, "train/lr": 0.05 * (1 + math.cos(math.pi * done)), "time/step_s": 0.04}
        metrics |= {f"train/term/{term}": loss / (1 + i) for i, term in enumerate(stage.terms)}
        yield {"step": step, "epoch": step / STEPS_PER_EPOCH, "time": STARTED + step * 0.04, "metrics": metrics}


def _validation_lines(stage: FakeStage, top1: float, epochs: int, share: float) -> Iterator[dict[str, Any]]:
    for epoch in range(1, int(epochs * share) + 1):
        rise = 0.5 * math.exp(-6 * epoch / epochs) if epoch < epochs else 0.0
        value = top1 + 0.002 - rise * (1 + 0.2 * noise(stage.name, top1, epoch))
        metrics = {"val/top1": value, "val/nll": 1.5 * (1 - value), "val/ece": 0.02}
        yield {
            "step": STEPS_PER_EPOCH * epoch, "epoch": float(epoch), "time": STARTED + epoch * 17, "metrics": metrics
        }  # fmt: skip


def _write_first_look(folder: Path, stage: FakeStage, values: Values, tale: Fiction) -> None:
    heavy = 310.0 if values.get("method") == "at" else 1.0
    norms = [1.3 if term == "ce" else 1.1 * heavy for term in stage.terms]
    terms = [
        {
            "id": term, "pass": "main", "value": 2.31 if term == "ce" else 1.24, "weight": 0.5,
            "weighted": 1.155 if term == "ce" else 0.62, "gradient_norm": norm, "gradient_share": norm / sum(norms),
        }
        for term, norm in zip(stage.terms, norms, strict=True)
    ]  # fmt: skip
    (folder / "step0.json").write_text(json.dumps({"schema": 1, "samples": 64, "terms": terms}))
    images = tale.images if tale.images is not None else _waves(32)
    labels = np.arange(len(images)) % 10
    arrays: dict[str, Any] = {"images": images, "labels": labels}
    if stage.taught:
        wrong = np.arange(len(images)) % 9 == 4
        arrays["teacher_top1"] = np.where(wrong, (labels + 6) % 10, labels)
        arrays["teacher_confidence"] = np.where(wrong, 0.55, 0.97).astype(np.float32)
    np.savez_compressed(folder / "views.npz", **arrays)


def _waves(number: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:28, :28]
    waves = [127 + 120 * np.sin((x * (1 + k % 3) + y * (1 + k % 4)) / 5 + k % 10) for k in range(number)]
    return np.stack(waves).astype(np.uint8)[..., None]


# --------------------------------------------------------------------------- sweeps that tests and people look at

DATA = FakeStage("data", "fashion_mnist", 0, 0.0, kind="convert", terms=())
TEACHER = FakeStage("teacher", "resnet_cifar depth=20", 272_186, 31.2e6, {"data": "data"}, top1=0.9312)
ASSISTANT = FakeStage(
    "assistant", "resnet_cifar depth=14", 174_970, 20.9e6, {"data": "data", "t": "teacher"}, None, 0.9251,
    terms=("ce", "kd"),
)  # fmt: skip
STUDENT = FakeStage(
    "student", "resnet_cifar depth=8", 77_754, 9.4e6, {"data": "data", "ta": "assistant"}, None, 0.9074,
    terms=("ce", "kd"),
)  # fmt: skip


def takd(runs: Path, name: str = "quickstart", axes: Mapping[str, Sequence[str]] | None = None, **tale: Any) -> Path:
    """Teacher, assistant, student."""
    return write_sweep(runs, name, [replace(DATA, of=()), TEACHER, ASSISTANT, STUDENT], axes, Fiction(**tale))


FILL = FakeStage(
    "teacher-cache", "resnet_cifar depth=20: 3 views, dense, 20 B each", 0, 31.2e6,
    {"data": "data", "teacher": "teacher"}, (), kind="fill", terms=(),
    results={"blocks": 318, "images_per_s": 5200.0, "bytes": 3_256_320, "wall_s": 32.0},
)  # fmt: skip
CACHED = FakeStage(
    "student", "resnet_cifar depth=8", 77_754, 9.4e6,
    {"data": "data", "teacher": "teacher", "cache:teacher": "teacher-cache"}, None, 0.9074, terms=("ce", "kd"),
    cached={"teacher": ["teacher-cache"]},
)  # fmt: skip


def cached(runs: Path, name: str = "cached", *, seeds: int = 2, fill: FakeStage = FILL, **tale: Any) -> Path:
    """Students of several seeds that read one cache of a teacher."""
    stages = [replace(DATA, of=()), replace(TEACHER, of=()), fill, CACHED]
    return write_sweep(runs, name, stages, {"seed": [str(n) for n in range(seeds)]}, Fiction(**tale))


# Gain of each method over labels alone; parameters, FLOPs and top-1 on labels alone of each student.
METHODS = {"ce": 0.0, "kd": 0.017, "at": 0.012, "fitnet": 0.009, "crd": 0.021}
STUDENTS = {
    "mine48": (1_180_000, 71e6, 0.7961),
    "mine96": (4_630_000, 268e6, 0.8123),
    "r18": (11_170_000, 557e6, 0.8241),
    "mbv2": (2_240_000, 94e6, 0.7889),
}
VIT = FakeStage("teacher", "timm:vit_base_patch16_224", 86_000_000, 17.6e9, of=(), top1=0.871)
PUPIL = FakeStage("student", "birds.nets:TinyNet", teachers={"t": "teacher"}, terms=("ce", "kd"))


def bench(
    runs: Path,
    name: str = "birds-bench",
    *,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[str] = ("0", "1", "2"),
    **tale: Any,
) -> Path:
    """Methods x students x seeds under one reused teacher; crd on mbv2 is left out."""
    axes = {"method": list(methods), "student": list(STUDENTS), "seed": list(seeds)}
    told = {"top1": _benched, "change": _student_of, "exclude": [{"method": "crd", "student": "mbv2"}]}
    return write_sweep(runs, name, [VIT, PUPIL], axes, Fiction(**{**told, "reused": ("teacher",), **tale}))


def _student_of(stage: FakeStage, values: Values) -> FakeStage:
    if stage.name == "teacher":
        return stage
    params, flops, _ = STUDENTS[values["student"]]
    method, model = values["method"], f"birds.nets:{values['student']}"
    if method == "ce":
        return replace(stage, params=params, flops=flops, model=model, teachers={}, terms=("ce",))
    return replace(stage, params=params, flops=flops, model=model, terms=("ce", method))


def _benched(stage: FakeStage, values: Values) -> float:
    """Seeds share most of their luck over methods, as they do in truth: that is what pairing uses."""
    if stage.name == "teacher":
        return stage.top1
    luck = 0.002 * noise("seed", values["seed"], values["student"]) + 0.0008 * noise(sorted(values.items()))
    return STUDENTS[values["student"]][2] + METHODS[values["method"]] + luck
