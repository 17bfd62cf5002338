"""The stages that measure finished networks: own metrics, and figures on further test sets.

A measurement is a stage of its own, which takes from the one that trained. So it is computed for what is done already,
none of it is in the training stage's identity, and a metric that fails loses no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
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
    """A further set that was found to fit."""

    data: DataConfig
    info: DatasetInfo
    fingerprint: str
    store: str
    """Digest of the stage that converts it."""
    metrics: dict[str, str]

    @property
    def rows(self) -> int:
        return _rows(self.info, self.data)


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
    if info.per_pixel:
        _refuse_metrics(spec)
    metrics = metric_names(spec.eval.metrics)
    sets = {name: _opened(spec, name, one, info, open_set) for name, one in spec.eval.sets.items() if one is not None}
    measures = _measures(spec, trained, metrics, sets)
    digest = hashlib.sha256(json.dumps(measures, sort_keys=True).encode()).hexdigest()
    # the stage's own test images are gone through again for the sake of a metric alone
    rows = sum(one.rows for one in sets.values()) + (_rows(info, spec.data) if metrics else 0)
    cost = Cost(steps=rows, flops=trained.cost.flops, inodes=STAGE_FILES)
    name, data = f"{spec.name}-eval", trained.definition["data"]
    definition = {
        "schema": 1, "kind": "evaluate", "digest": digest, "name": name, "model": trained.model, "measures": measures,
        "spec": _alone(spec, name).model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"name": name},
        "parents": {"student": {"digest": trained.digest, "selector": "last"}}, "data": data,
        "sets": {name: _document(one, data["loader"]) for name, one in sets.items()}, "cost": cost.document(),
    }  # fmt: skip
    parents = {"student": (trained.digest, "last"), "data": trained.parents["data"]}
    parents |= {f"data:{name}": (one.store, "store") for name, one in sets.items()}
    return PlannedStage(digest, name, "evaluate", parents, 0, ", ".join([*metrics, *sets]), cost, definition)


def _refuse_metrics(spec: StageSpec) -> None:
    """There are too many logits of pixels to keep. Raises: ConfigError."""
    asked = {"metrics": spec.eval.metrics}
    asked |= {f"sets.{name}.metrics": one.metrics or [] for name, one in spec.eval.sets.items() if one is not None}
    for key, metrics in asked.items():
        if metrics:
            said = f"{spec.data.name} labels pixels, and metrics take logits (N, C); its figure is mIoU"
            raise ConfigError(f"stages.{spec.name}.eval.{key}: {said}")


def _measures(
    spec: StageSpec, trained: PlannedStage, metrics: Mapping[str, str], sets: Mapping[str, _Opened]
) -> dict[str, Any]:
    """What decides the figures: whose weights, which code, which images."""
    return {
        "kind": "evaluate", "student": trained.digest, "selector": "last", "numerics": NUMERICS,
        "metrics": _code(metrics, f"stages.{spec.name}.eval.metrics", spec),
        "sets": {
            name: {
                "data": data_identity(one.data, one.fingerprint), "size": one.data.size,
                "store_size": one.data.store_size, "limit": one.data.limit_test,
                **({"split_seed": one.data.split_seed} if one.data.limit_test else {}),
                "metrics": _code(one.metrics, f"stages.{spec.name}.eval.sets.{name}.metrics", spec),
            }
            for name, one in sets.items()
        },
    }  # fmt: skip


def _code(metrics: Mapping[str, str], at: str, spec: StageSpec) -> dict[str, tuple[str, str | int]]:
    """Each metric with what stands for its code. Raises: PluginError, with the key path."""
    try:
        return {name: (metric, plugins.revision("metrics", metric, spec.plugins)) for name, metric in metrics.items()}
    except PluginError as error:
        raise PluginError(f"{at}: {error}") from error


def _rows(info: DatasetInfo, data: DataConfig) -> int:
    return min(info.test_rows, data.limit_test or info.test_rows)


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


def _document(one: _Opened, loader: str) -> dict[str, Any]:
    return {
        "store": one.store, "fingerprint": one.fingerprint, "info": asdict(one.info), "loader": loader,
        "data": one.data.model_dump(mode="json", exclude_defaults=True), "metrics": one.metrics,
    }  # fmt: skip


def _alone(spec: StageSpec, name: str) -> StageSpec:
    """The stage as one process answers for it: what comes out does not depend on how many trained."""
    changes = {"nodes": 1, "processes_per_node": None, "time_floor_min": None}
    minutes = min(MOST_MINUTES, spec.resources.time_min)
    resources = spec.resources.model_copy(update={**changes, "time_min": minutes})
    return spec.model_copy(update={"name": name, "resources": resources, "engine": type(spec.engine)(processes=1)})
