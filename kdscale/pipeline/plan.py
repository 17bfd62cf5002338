"""From a sweep to the unique stages that it needs, in order, with their digests, costs and what is reused.

Nothing is written here and nothing runs, except dry runs of each distinct architecture on made-up
images: whatever would fail after an hour in the queue fails now, with its key path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

from kdscale import plugins
from kdscale.api import Dataset, DatasetInfo
from kdscale.config.digest import stage_digest
from kdscale.config.load import Sweep, Trial, resolve_stages
from kdscale.config.schema import DataConfig, StageSpec, StudentConfig
from kdscale.errors import ConfigError, TapError
from kdscale.nn.build import own_input
from kdscale.nn.weights import file_weights_hash
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.assemble import Parent, image_size, teacher_network
from kdscale.pipeline.caching import doubts, need_of, refuse_what_the_cache_cannot_give, resolve_caches
from kdscale.pipeline.conversions import conversion, data_identity
from kdscale.pipeline.cost import training_cost, training_rows
from kdscale.pipeline.dry_run import DryRun, dry_run
from kdscale.pipeline.engine_limits import refuse_what_the_engine_cannot_run
from kdscale.pipeline.evaluation_stages import evaluation
from kdscale.pipeline.fill_stages import Reading, fill_name, with_fills
from kdscale.pipeline.machine import Site, best_precision, processes_of
from kdscale.pipeline.per_pixel import refuse_what_pixels_cannot
from kdscale.pipeline.planned import Plan, PlannedStage, PlannedTrial, label_of
from kdscale.pipeline.references import in_depth, in_order, parents_first, parents_of
from kdscale.pipeline.reuse import judge
from kdscale.pipeline.transfer import refuse_labels
from kdscale.pipeline.used_plugins import import_own, revisions_of

__all__ = ["Plan", "PlannedStage", "PlannedTrial", "Planner", "make_plan"]


def make_plan(  # noqa: PLR0913
    sweep: Sweep,
    root: Root,
    *,
    fresh: Sequence[str] = (),
    fetch: bool = False,
    command: str = "",
    site: Site | None = None,
    say: Callable[[str], None] = lambda _: None,
    planner: Planner | None = None,
) -> Plan:
    """Plan all trials of a sweep.

    Args:
        sweep: loaded and expanded.
        root: where finished stages are looked for.
        fetch: whether data that is missing is downloaded now, so that nothing starts that cannot go on.
        fresh: names of stages that are made anew even where done.
        command: for the record.
        site: where it will run, if not here.
        say: told what takes time.
        planner: one that has planned a part of these trials before; `fetch`, `site` and `say` are then its own.

    Raises:
        KDScaleError: with the key path, for whatever could not work.
    """
    planner = planner or Planner(root, say, site, fetch=fetch)
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
        cite={name: entry for trial in sweep.trials for name, entry in trial.experiment.cite.items()},
        config_path=str(sweep.path),
        command=command,
    )


class Planner:
    """Gathers unique stages; whatever several trials share is worked out once."""

    def __init__(self, root: Root, say: Callable[[str], None], site: Site | None, *, fetch: bool) -> None:
        self._root, self._say, self._site, self._fetch = root, say, site, fetch
        self._stages: dict[str, PlannedStage] = {}
        self._keep: dict[str, set[str]] = {}
        self._data: dict[str, tuple[Dataset, DatasetInfo, str]] = {}
        self._specs: dict[str, tuple[str, dict[str, str]]] = {}
        self._by_digest: dict[str, StageSpec] = {}
        self._precision: str | None = None
        self._hashes: dict[tuple[str, str | None], str] = {}
        self._readings: list[Reading] = []

    def trial(self, trial: Trial) -> PlannedTrial:
        specs = resolve_stages(trial)
        digests: dict[str, str] = {}
        for name in in_order(specs):
            digests[name] = self._stage(specs[name], digests)
        return PlannedTrial(trial.axes, label_of(trial.axes), digests, trial.swept)

    def _stage(self, raw: StageSpec, known: Mapping[str, str]) -> str:
        spec = self._resolved(raw)
        import_own(spec)
        refuse_what_the_engine_cannot_run(spec)
        parents = parents_of(spec, known)
        key = json.dumps([spec.model_dump(mode="json", by_alias=True), parents], sort_keys=True, default=str)
        if key in self._specs:
            return self._specs[key][0]
        _, info, fingerprint = self._dataset(spec.data)
        refuse_what_pixels_cannot(spec, info)
        spec = resolve_caches(spec, info)
        refuse_what_the_cache_cannot_give(spec)
        refuse_labels(spec, info)
        digest = stage_digest(
            spec, parents=parents, fingerprint=data_identity(spec.data, fingerprint), revisions=revisions_of(spec)
        )
        for parent, selector in parents.values():
            self._want(parent, selector, spec)
        if digest not in self._stages:
            self._say(f"planning {spec.name}")
            self._by_digest[digest] = spec
            store = self._store(spec, info, fingerprint)
            self._stages[digest] = self._planned(spec, digest, parents, store, info, fingerprint)
            self._readings += self._reads(spec, digest, parents, info, fingerprint)
            self._keep.setdefault(digest, set()).update({"last"} | ({"best"} if _validates(spec) else set()))
        if spec.export is not None:
            self._want(digest, spec.export.weights, spec)
        self._measure(spec, digest)
        self._specs[key] = (digest, {})
        return digest

    def _planned(
        self, spec: StageSpec, digest: str, parents: dict[str, tuple[str, str]], store: str, info: DatasetInfo,
        fingerprint: str,
    ) -> PlannedStage:  # fmt: skip
        dry = self._dry_run(spec, parents, info)
        cost = training_cost(spec, info, dry.counted, kept=2)
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
            **({"wire": dry.wire} if dry.wire else {}),
        }  # fmt: skip
        everyone = parents | {"data": (store, "store")}
        return PlannedStage(digest, spec.name, "train", everyone, 0, dry.model, cost, definition)

    def _reads(
        self, spec: StageSpec, digest: str, parents: Mapping[str, tuple[str, str]], info: DatasetInfo, fingerprint: str
    ) -> Iterator[Reading]:
        """The caches that a student reads."""
        data = data_identity(spec.data, fingerprint)
        for role, cache in ((role, ref.cache) for role, ref in spec.teachers.items()):
            if cache is not None:
                at = f"stages.{spec.name}.teachers.{role}.cache.pooled"
                pooled = self._pooled(parents[role][0], info, image_size(spec, info), at) if cache.pooled else 0
                need = need_of(spec, role, parents[role], info, data, pooled)
                for doubt in doubts(need.layout):
                    self._say(f"stages.{spec.name}.teachers.{role}.cache.{doubt}")
                yield Reading(digest, role, need, cache, spec)

    def _pooled(self, teacher: str, info: DatasetInfo, size: int, at: str) -> int:
        """Features of a teacher's tap `pooled`. Raises: TapError when they are no vector."""
        network = teacher_network(self._producer(teacher), info, size, ["pooled"])
        shape = network.tap_shapes(size)[0]
        if len(shape) != 1:
            said = f"keeps vectors, not {list(shape)}; set taps: {{pooled: MODULE}} in the teacher's student"
            raise TapError(f"{at}: {said}")
        return shape[0]

    def _store(self, spec: StageSpec, info: DatasetInfo, fingerprint: str) -> str:
        """The stage that converts this data set for the loader; shared by all who read it."""
        found = conversion(spec, info, fingerprint)
        return self._stages.setdefault(found.digest, found).digest

    def _measure(self, spec: StageSpec, digest: str) -> None:
        """Plan what a stage wants to be measured of what it has trained."""
        if spec.eval.asked:
            found = evaluation(spec, self._stages[digest], self._dataset(spec.data)[1], self._further_set)
            self._stages.setdefault(found.digest, found)

    def _further_set(self, spec: StageSpec) -> tuple[DatasetInfo, str, str]:
        _, info, fingerprint = self._dataset(spec.data)
        return info, fingerprint, self._store(spec, info, fingerprint)

    def finish(self, fresh: Sequence[str]) -> dict[str, PlannedStage]:
        """Decide what is reused, parents first, and what each stage keeps."""
        names = {stage.name for stage in self._stages.values()}
        names |= {fill_name(self._stages[reading.need.teacher]) for reading in self._readings}
        for name in fresh:
            if name not in names:
                raise ConfigError(f"--fresh {name}: no such stage (there are: {', '.join(sorted(names))})")
        found = self._root.stages_of(self._stages)
        judged: dict[str, PlannedStage] = {}
        for digest in parents_first(self._stages):
            stage = self._stages[digest]
            if stage.kind == "train":
                stage = replace(stage, definition=stage.definition | {"keep": sorted(self._keep.get(digest, set()))})
            verdict = judge(found, stage, judged, forced=stage.name in fresh)
            judged[digest] = replace(stage, reuse=verdict)
        return in_depth(with_fills(judged, self._readings, self._root, fresh))

    # ------------------------------------------------------------------ pieces

    def _resolved(self, spec: StageSpec) -> StageSpec:
        """Replace what depends on the machine by what it is here: precision and number of processes."""
        train, engine = spec.train, spec.engine
        student = spec.student
        if student.weights is not None:
            own = own_input(student, spec.plugins)
            student = student.model_copy(update={"weights_hash": self._file_hash(student), "input": own})
        if train.precision == "auto":
            self._precision = self._precision or best_precision()
            wanted = self._site.precision_of(spec) if self._site else self._precision
            train = train.model_copy(update={"precision": wanted})
        processes = self._site.processes_of(spec) if self._site else processes_of(spec)
        engine = engine.model_copy(update={"processes": processes})
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
            dataset: Dataset = plugins.load("datasets", data.name)(data, download=self._fetch)
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


def _validates(spec: StageSpec) -> bool:
    return spec.data.val_fraction > 0 and spec.train.epochs > 0
