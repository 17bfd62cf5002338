"""The stages that measure finished networks: own metrics, and figures on further test sets.

A measurement is a stage of its own, which takes from the one that trained. So it is computed for what is done already,
none of it is in the training stage's identity, and a metric that fails loses no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdscale import plugins
from kdscale.api import DatasetInfo
from kdscale.config.digest import NUMERICS
from kdscale.config.evaluation import FurtherSet, metric_names
from kdscale.config.schema import DataConfig, StageSpec
from kdscale.errors import ConfigError, DataError, PluginError
from kdscale.pipeline.assemble import image_size
from kdscale.pipeline.conversions import data_identity
from kdscale.pipeline.cost import STAGE_FILES, Cost
from kdscale.pipeline.planned import PlannedStage

__all__ = ["SetOpener", "evaluation"]

MOST_MINUTES = 60
"""That a measurement asks of a cluster: it only answers, and short jobs begin soon."""

_WITHOUT_TRAINING_IMAGES = {"image_folder": {"train": None}}
"""Options of data sets that a test set, which need not have training images, is opened with."""

SetOpener = Callable[[StageSpec], tuple[DatasetInfo, str, str]]
"""Of a stage's data: what it is, its fingerprint, and the digest of the stage that converts it."""


@dataclass(frozen=True)
class _Opened:
    data: DataConfig
    info: DatasetInfo
    fingerprint: str
    store: str
    metrics: dict[str, str]


def evaluation(spec: StageSpec, trained: PlannedStage, info: DatasetInfo, open_set: SetOpener) -> PlannedStage:
    """The stage that measures what another has trained.

    Args:
        spec: of the stage that trains, which asks for something to be measured.
        trained: as planned.
        info: of its data.
        open_set: opens a further set as the data of a stage, and plans its conversion.

    Raises:
        ConfigError: a further set does not fit the network, or the data has a class for each pixel.
        PluginError: a metric cannot be imported.
        DataError: a further set is missing.
    """
    if info.per_pixel and spec.eval.metrics:
        said = f"{spec.data.name} labels pixels, and metrics take logits (N, C); its figure is mIoU"
        raise ConfigError(f"stages.{spec.name}.eval.metrics: {said}")
    metrics = metric_names(spec.eval.metrics)
    sets = {name: _opened(spec, name, one, info, open_set) for name, one in spec.eval.sets.items() if one is not None}
    known = {metric: _revision(metric, spec) for metric in _all(metrics, sets)}
    what = {
        "kind": "evaluate", "student": trained.digest, "selector": "last", "numerics": NUMERICS,
        "metrics": {name: [metric, known[metric]] for name, metric in metrics.items()},
        "sets": {name: _identity(one, known) for name, one in sets.items()},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    name, own = f"{spec.name}-eval", _alone(spec)
    definition = {
        "schema": 1, "kind": "evaluate", "digest": digest, "name": name, "model": trained.model, "measures": what,
        "spec": own.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"name": name},
        "parents": {"student": {"digest": trained.digest, "selector": "last"}},
        "data": trained.definition["data"],
        "sets": {name: _document(one, trained.definition["data"]["loader"]) for name, one in sets.items()},
    }  # fmt: skip
    parents = {"student": (trained.digest, "last"), "data": trained.parents["data"]}
    parents |= {f"data:{name}": (one.store, "store") for name, one in sets.items()}
    rows = sum(min(i.test_rows, d.limit_test or i.test_rows) for i, d in _read(spec, info, sets))
    cost = Cost(steps=rows, flops=trained.cost.flops, inodes=STAGE_FILES)
    definition["cost"] = cost.document()
    return PlannedStage(digest, name, "evaluate", parents, 0, ", ".join([*metrics, *sets]), cost, definition)


def _all(metrics: Mapping[str, str], sets: Mapping[str, _Opened]) -> list[str]:
    """Every metric once."""
    return list(dict.fromkeys([*metrics.values(), *(m for one in sets.values() for m in one.metrics.values())]))


def _revision(metric: str, spec: StageSpec) -> str | int:
    """What stands for a metric's code. Raises: PluginError, with the key path."""
    try:
        return plugins.revision("metrics", metric, spec.plugins)
    except PluginError as error:
        raise PluginError(f"stages.{spec.name}.eval.metrics: {error}") from error


def _read(spec: StageSpec, info: DatasetInfo, sets: Mapping[str, _Opened]) -> Iterator[tuple[DatasetInfo, DataConfig]]:
    """The data sets whose test split is gone through: the stage's own only for the sake of a metric."""
    if spec.eval.metrics:
        yield info, spec.data
    yield from ((one.info, one.data) for one in sets.values())


def _opened(spec: StageSpec, name: str, one: FurtherSet, info: DatasetInfo, open_set: SetOpener) -> _Opened:
    """A further set, seen as the network sees its own test images. Raises: ConfigError, where it is another task."""
    at = f"stages.{spec.name}.eval.sets.{name}"
    data = _data_of(spec, one, info)
    try:
        found, fingerprint, store = open_set(spec.model_copy(update={"data": data}))
    except DataError as error:
        raise DataError(f"{at}: {error}") from error
    if problem := _unlike(found, info):
        raise ConfigError(f"{at}: {problem}")
    metrics = {} if info.per_pixel else metric_names(spec.eval.metrics if one.metrics is None else one.metrics)
    return _Opened(data, found, fingerprint, store, metrics)


def _unlike(found: DatasetInfo, info: DatasetInfo) -> str:
    """Why a network that was made for one data set cannot be asked about another; empty where it can."""
    if found.classes != info.classes:
        return f"has {found.classes} classes, and the network was made for {info.classes}"
    if found.channels != info.channels:
        return f"has {found.channels} channels, and the network was made for {info.channels}"
    if found.per_pixel != info.per_pixel:
        return "labels pixels, and the network's data images" if found.per_pixel else "does not label pixels"
    both = zip(found.class_names, info.class_names, strict=True) if _named(found) and _named(info) else ()
    for theirs, ours in both:
        if theirs != ours:
            return f"its class {theirs} stands where the network's data has {ours}; name its folders as those"
    return ""


def _named(info: DatasetInfo) -> bool:
    """Whether the classes have names, and not numbers alone."""
    return len(info.class_names) == info.classes and not all(name.isdigit() for name in info.class_names)


def _data_of(spec: StageSpec, one: FurtherSet, info: DatasetInfo) -> DataConfig:
    name = one.name or spec.data.name
    same = name == spec.data.name
    options = (spec.data.options if same and not one.root else {}) | one.options
    changes = {
        "name": name, "root": one.root or (spec.data.root if same else None), "limit_test": one.limit,
        "options": (_WITHOUT_TRAINING_IMAGES.get(name, {}) if one.root else {}) | options,
        "size": image_size(spec, info), "store_size": spec.data.store_size,
        "loader": spec.data.loader, "stage_to": spec.data.stage_to, "store": spec.data.store,
        "split_seed": spec.data.split_seed, "val_fraction": 0.0,
    }  # fmt: skip
    return DataConfig(**changes)


def _identity(one: _Opened, known: Mapping[str, str | int]) -> dict[str, Any]:
    """What decides the figures on a further set."""
    rows = {"limit": one.data.limit_test, "split_seed": one.data.split_seed} if one.data.limit_test else {}
    return {
        "data": data_identity(one.data, one.fingerprint), "size": one.data.size, "store_size": one.data.store_size,
        "metrics": {name: [metric, known[metric]] for name, metric in one.metrics.items()}, **rows,
    }  # fmt: skip


def _document(one: _Opened, loader: str) -> dict[str, Any]:
    return {
        "store": one.store, "fingerprint": one.fingerprint, "info": asdict(one.info), "loader": loader,
        "data": one.data.model_dump(mode="json", exclude_defaults=True), "metrics": one.metrics,
    }  # fmt: skip


def _alone(spec: StageSpec) -> StageSpec:
    """The stage as one process answers for it: what comes out does not depend on how many trained."""
    resources = spec.resources.model_copy(
        update={
            "nodes": 1, "processes_per_node": None, "time_floor_min": None,
            "time_min": min(MOST_MINUTES, spec.resources.time_min),
        }
    )  # fmt: skip
    engine = type(spec.engine)(processes=1)
    return spec.model_copy(update={"name": f"{spec.name}-eval", "resources": resources, "engine": engine})
