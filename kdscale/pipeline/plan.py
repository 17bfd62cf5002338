"""From a sweep to the unique stages that it needs, in order, with their digests, costs and what is reused.

Nothing is written here and nothing runs, except dry runs of each distinct architecture on made-up
images: whatever would fail after an hour in the queue fails now, with its key path.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from kdscale import plugins
from kdscale.api import Dataset, DatasetInfo
from kdscale.config.digest import NUMERICS, stage_digest
from kdscale.config.load import Sweep, Trial, parse_reference, resolve_stages
from kdscale.config.schema import DataConfig, StageSpec, StudentConfig
from kdscale.errors import ConfigError
from kdscale.nn.weights import file_weights_hash
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.assemble import Parent
from kdscale.pipeline.cost import Cost, conversion_cost, training_cost, training_rows
from kdscale.pipeline.dry_run import DryRun, dry_run
from kdscale.pipeline.reuse import NEW, Reuse, judge

__all__ = ["Plan", "PlannedStage", "PlannedTrial", "make_plan"]


@dataclass(frozen=True)
class PlannedStage:
    """One unique stage over all trials."""

    digest: str
    name: str
    kind: str
    """"train" or "convert"."""
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

    @property
    def folder_name(self) -> str:
        """Under runs/sweeps."""
        return f"{self.name}-{self.digest[:8]}"

    @property
    def todo(self) -> list[PlannedStage]:
        """Stages that are not done yet, parents first."""
        return [stage for stage in self.stages.values() if not stage.reuse.done]

    def document(self) -> dict[str, Any]:
        """As plan.json holds it."""
        return {
            "schema": 1, "name": self.name, "digest": self.digest, "created": time.time(), "command": self.command,
            "config_path": self.config_path, "axes": self.axes, "trials": [asdict(trial) for trial in self.trials],
            "stages": {digest: _entry(stage) for digest, stage in self.stages.items()}, "tracking": self.tracking,
        }  # fmt: skip


def make_plan(
    sweep: Sweep,
    root: Root,
    *,
    fresh: Sequence[str] = (),
    command: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan all trials of a sweep.

    Args:
        sweep: loaded and expanded.
        root: where finished stages are looked for.
        fresh: names of stages that are made anew even where done.
        command: for the record.
        say: told what takes time.

    Raises:
        KDScaleError: with the key path, for whatever could not work.
    """
    planner = _Planner(root, say)
    trials = [planner.trial(trial) for trial in sweep.trials]
    stages = planner.finish(fresh)
    first = sweep.trials[0].experiment
    identity = json.dumps([sweep.name, [(t.axes, t.stages) for t in trials]], sort_keys=True)
    return Plan(
        name=sweep.name,
        digest=hashlib.sha256(identity.encode()).hexdigest(),
        axes=sweep.axes,
        trials=trials,
        stages=stages,
        tracking=first.tracking.model_dump(),
        limits=first.limits.model_dump(),
        config_path=str(sweep.path),
        command=command,
    )


class _Planner:
    """Gathers unique stages; whatever several trials share is worked out once."""

    def __init__(self, root: Root, say: Callable[[str], None]) -> None:
        self._root, self._say = root, say
        self._stages: dict[str, PlannedStage] = {}
        self._keep: dict[str, set[str]] = {}
        self._data: dict[str, tuple[Dataset, DatasetInfo, str]] = {}
        self._specs: dict[str, tuple[str, dict[str, str]]] = {}
        self._by_digest: dict[str, StageSpec] = {}
        self._precision: str | None = None
        self._hashes: dict[tuple[str, str | None], str] = {}

    def trial(self, trial: Trial) -> PlannedTrial:
        specs = resolve_stages(trial)
        digests: dict[str, str] = {}
        for name in _order(specs):
            digests[name] = self._stage(specs[name], digests)
        return PlannedTrial(trial.axes, label_of(trial.axes), digests, trial.swept)

    def _stage(self, raw: StageSpec, known: Mapping[str, str]) -> str:
        spec = self._resolved(raw)
        parents = _parents(spec, known)
        key = json.dumps([spec.model_dump(mode="json", by_alias=True), parents], sort_keys=True, default=str)
        if key in self._specs:
            return self._specs[key][0]
        _, info, fingerprint = self._dataset(spec.data)
        digest = stage_digest(
            spec, parents=parents, fingerprint=_data_identity(spec.data, fingerprint), revisions=_revisions(spec)
        )
        for parent, selector in parents.values():
            self._want(parent, selector, spec)
        if digest not in self._stages:
            self._say(f"planning {spec.name}")
            self._by_digest[digest] = spec
            store = self._conversion(spec, info, fingerprint)
            self._stages[digest] = self._planned(spec, digest, parents, store, info, fingerprint)
            self._keep.setdefault(digest, set()).update({"last"} | ({"best"} if _validates(spec) else set()))
        self._specs[key] = (digest, {})
        return digest

    def _planned(
        self, spec: StageSpec, digest: str, parents: dict[str, tuple[str, str]], store: str, info: DatasetInfo,
        fingerprint: str,
    ) -> PlannedStage:  # fmt: skip
        dry = self._dry_run(spec, parents, info)
        cost = training_cost(spec, info, dry.params, dry.flops, dry.teacher_flops, kept=2)
        if spec.train.epochs and not cost.steps:
            rows = training_rows(spec, info)
            raise ConfigError(
                f"stages.{spec.name}.train.batch_size: {spec.train.batch_size} is more than the {rows} training rows"
            )
        definition = {
            "schema": 1, "kind": "train", "digest": digest, "name": spec.name,
            "spec": spec.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"name": spec.name},
            "parents": {role: {"digest": d, "selector": s} for role, (d, s) in parents.items()},
            "data": {
                "store": store, "fingerprint": fingerprint, "info": asdict(info),
                "loader": self._stages[store].definition["store_kind"],
            },
            "frozen": dry.frozen, "model": dry.model, "cost": cost.document(),
        }  # fmt: skip
        depth = 1 + max([self._stages[d].depth for d, _ in parents.values()] + [self._stages[store].depth])
        everyone = parents | {"data": (store, "store")}
        return PlannedStage(digest, spec.name, "train", everyone, depth, dry.model, cost, definition)

    def _conversion(self, spec: StageSpec, info: DatasetInfo, fingerprint: str) -> str:
        """The stage that converts this data set for the loader; shared by all who read it."""
        from kdscale.data.convert import stored_side
        from kdscale.data.loader import resolve_loader

        data = spec.data
        what = {
            "kind": "convert", "name": data.name, "fingerprint": fingerprint, "store": data.store, "numerics": NUMERICS,
            "store_size": stored_side(info, data), "store_kind": resolve_loader(data), "options": data.options,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        if digest not in self._stages:
            kept = {"name", "root", "size", "store", "store_size", "options", "loader"}
            own = StageSpec(
                name="data", student=spec.student, data=DataConfig(**data.model_dump(include=kept)),
                resources=spec.resources, engine=spec.engine, plugins=spec.plugins,
            )  # fmt: skip
            definition = what | {
                "schema": 1, "digest": digest, "info": asdict(info), "parents": {},
                "spec": own.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"name": "data"},
            }  # fmt: skip
            cost = conversion_cost(definition, info)
            self._stages[digest] = PlannedStage(digest, "data", "convert", {}, 0, data.name, cost, definition)
        return digest

    def finish(self, fresh: Sequence[str]) -> dict[str, PlannedStage]:
        """Decide what is reused, parents first, and what each stage keeps."""
        names = {stage.name for stage in self._stages.values()}
        for name in fresh:
            if name not in names:
                raise ConfigError(f"--fresh {name}: no such stage (there are: {', '.join(sorted(names))})")
        done: dict[str, PlannedStage] = {}
        for digest in _topological(self._stages):
            stage = self._stages[digest]
            keep = sorted(self._keep.get(digest, set()))
            if stage.kind == "train":
                stage = replace(stage, definition=stage.definition | {"keep": keep})
            verdict = judge(self._root, stage, done, forced=stage.name in fresh)
            done[digest] = replace(stage, reuse=verdict)
        return done

    # ------------------------------------------------------------------ pieces

    def _resolved(self, spec: StageSpec) -> StageSpec:
        """Replace what depends on the machine by what it is here: precision and number of processes."""
        train, engine = spec.train, spec.engine
        student = spec.student
        if student.weights is not None:
            student = student.model_copy(update={"weights_hash": self._file_hash(student)})
        if train.precision == "auto":
            self._precision = self._precision or best_precision()
            train = train.model_copy(update={"precision": self._precision})
        processes = engine.processes if engine.processes != "auto" else fitting_processes(train.batch_size, train)
        share = int(processes) * train.accumulation
        if train.batch_size % share:
            raise ConfigError(
                f"stages.{spec.name}.train.batch_size: {train.batch_size} does not divide by "
                f"{processes} processes x accumulation {train.accumulation}"
            )
        engine = engine.model_copy(update={"processes": int(processes)})
        return spec.model_copy(update={"train": train, "engine": engine, "student": student})

    def _file_hash(self, student: StudentConfig) -> str:
        """Hash of the tensors in a weights file: the file's name and format are no part of what it is."""
        key = (str(student.weights), student.weights_key)
        if key not in self._hashes:
            assert student.weights is not None
            self._hashes[key] = file_weights_hash(student.weights, student.weights_key)
        return self._hashes[key]

    def _dataset(self, data: DataConfig) -> tuple[Dataset, DatasetInfo, str]:
        key = json.dumps([data.name, str(data.root), data.size, data.options], sort_keys=True)
        if key not in self._data:
            dataset: Dataset = plugins.load("datasets", data.name)(data, download=False)
            self._data[key] = (dataset, dataset.info, dataset.fingerprint())
        return self._data[key]

    def _dry_run(self, spec: StageSpec, parents: Mapping[str, tuple[str, str]], info: DatasetInfo) -> DryRun:
        producers = {role: self._producer(digest) for role, (digest, _) in parents.items() if role in spec.teachers}
        return dry_run(spec, info, producers)

    def _producer(self, digest: str) -> Parent:
        spec = self._by_digest[digest]
        return Parent(spec, self._dataset(spec.data)[1])

    def _want(self, producer: str, selector: str, spec: StageSpec) -> None:
        source = self._by_digest[producer]
        if selector == "best" and not _validates(source):
            raise ConfigError(
                f"stages.{spec.name}: takes {source.name}@best, but {source.name} has no validation rows to be best on "
                "(data.val_fraction is 0, or it trains for no epoch): use @last"
            )
        kind, _, value = selector.partition(":")
        if kind == "epoch" and int(value) > source.train.epochs:
            raise ConfigError(
                f"stages.{spec.name}: {source.name}@{selector}, but it trains {source.train.epochs} epochs"
            )
        self._keep.setdefault(producer, set()).add(selector)


def label_of(axes: Mapping[str, str]) -> str:
    """A trial's name on screens: its axis values; a bare seed is written s0."""
    return " · ".join(f"s{value}" if axis == "seed" else value for axis, value in axes.items()) or "only"


def best_precision() -> str:
    """bf16 where the processor or GPU computes in it (2.0 to 2.4 x fp32 on a CPU that does), else fp32."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def fitting_processes(batch_size: int, train: Any) -> int:
    """One process a GPU, or a core: the most that divide the batch."""
    import torch

    most = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return max(n for n in range(1, max(1, most) + 1) if batch_size % (n * train.accumulation) == 0 or n == 1)


def _parents(spec: StageSpec, known: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    references = {role: ref.from_ for role, ref in spec.teachers.items()}
    if spec.init_from is not None:
        references["init_from"] = spec.init_from.from_
    found = {}
    for role, text in references.items():
        stage, selector, _ = parse_reference(text)
        found[role] = (known[stage], selector)
    return found


def _order(specs: Mapping[str, StageSpec]) -> list[str]:
    edges = {}
    for name, spec in specs.items():
        texts = [ref.from_ for ref in spec.teachers.values()] + ([spec.init_from.from_] if spec.init_from else [])
        edges[name] = [parse_reference(text)[0] for text in texts]
        for parent in edges[name]:
            if parent not in specs:
                raise ConfigError(f"stages.{name}: takes from {parent}, which is no stage ({', '.join(specs)})")
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        raise ConfigError(f"stages form a cycle: {' -> '.join(error.args[1])}") from error


def _topological(stages: Mapping[str, PlannedStage]) -> list[str]:
    edges = {digest: [d for d, _ in stage.parents.values()] for digest, stage in stages.items()}
    return list(TopologicalSorter(edges).static_order())


def _validates(spec: StageSpec) -> bool:
    return spec.data.val_fraction > 0 and spec.train.epochs > 0


def _data_identity(data: DataConfig, fingerprint: str) -> str:
    """JPEG decoders differ by rounding, so who decodes is part of what the data is; raw pixels have no decoder."""
    from kdscale.data.loader import resolve_loader

    return f"{fingerprint}:{resolve_loader(data)}" if data.store == "jpeg" else fingerprint


def _revisions(spec: StageSpec) -> dict[str, str | int]:
    """The revision of each plug-in that the stage uses; a user's own class counts by the hash of its file."""
    found: dict[str, str | int] = {}
    terms = [term for terms in spec.passes.values() for term in terms]
    used = [("losses", t.name) for t in terms] + [("modifiers", m.name) for t in terms for m in t.modifiers]
    used += [("strategies", spec.strategy), ("datasets", spec.data.name), ("models", spec.student.model)]
    for kind, name in used:
        found[f"{kind}.{name}"] = plugins.revision(kind, name, spec.plugins)
    return found


def _entry(stage: PlannedStage) -> dict[str, Any]:
    return {
        "name": stage.name, "kind": stage.kind, "folder": stage.folder, "depth": stage.depth, "model": stage.model,
        "parents": [{"role": r, "digest": d, "selector": s} for r, (d, s) in stage.parents.items()],
        "cost": stage.cost.document(), "reused": stage.reuse.done, "because": stage.reuse.because,
    }  # fmt: skip
