"""What can be seen to be wrong with a stage's own metrics, further test sets and export before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kdscale import plugins
from kdscale.config.complaints import KeyedError, hint
from kdscale.config.evaluation import FurtherSet, metric_names
from kdscale.config.schema import StageSpec
from kdscale.config.stages import parse_reference
from kdscale.errors import ConfigError

__all__ = ["check_evaluation", "check_export"]

_SET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_METRIC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

CheckDataset = Callable[[str, str, Mapping[str, Any]], None]


def check_evaluation(spec: StageSpec, check_dataset: CheckDataset) -> None:
    """Check names of metrics and sets.

    Args:
        spec: of the stage.
        check_dataset: given a key path, the name of a data set and its options.

    Raises:
        KeyedError: with the key path of the first thing that cannot work.
    """
    at = f"stages.{spec.name}.eval"
    _check_metrics(f"{at}.metrics", spec.eval.metrics, spec)
    for name, one in spec.eval.sets.items():
        if not _SET_NAME.fullmatch(name):
            raise KeyedError(f"{at}.sets.{name}", f"{name!r} is part of figures' names: use letters, digits and _")
        if one is not None:
            _check_set(f"{at}.sets.{name}", one, spec, check_dataset)


def _check_set(at: str, one: FurtherSet, spec: StageSpec, check_dataset: CheckDataset) -> None:
    check_dataset(at, one.name or spec.data.name, one.options)
    if not one.model_dump(exclude_unset=True, exclude={"metrics"}):
        raise KeyedError(at, "says nothing that differs from the stage's own data: give it a name, root or options")
    _check_metrics(f"{at}.metrics", one.metrics or [], spec)


def _check_metrics(at: str, metrics: list[str], spec: StageSpec) -> None:
    named = metric_names(metrics)
    for metric in metrics:
        name, package = metric.rpartition(":")[2], metric.partition(":")[0].partition(".")[0]
        if named[name] != metric or metrics.count(metric) > 1:
            raise KeyedError(at, f"two metrics are called {name}, and so would be their figures: rename one")
        if ":" not in metric:
            known = plugins.available("metrics")
            if metric not in known:
                raise KeyedError(at, f"there is no metric {metric}{hint(metric, known)}; your own: package.module:name")
        elif not _METRIC.fullmatch(metric):
            raise KeyedError(at, f"{metric}: say package.module:name of a function")
        elif package not in spec.plugins.allow:
            said = f"{metric}: {package} may not be imported; add it to plugins: {{allow: [{package}]}}"
            raise KeyedError(at, said)


def check_export(spec: StageSpec) -> None:
    """Check which weights are to be exported. Raises: KeyedError."""
    if spec.export is None:
        return
    try:
        parse_reference(f"{spec.name}@{spec.export.weights}")
    except ConfigError:
        said = f"{spec.export.weights!r} is no snapshot: say last, best, epoch:N or acc:0.9"
        raise KeyedError(f"stages.{spec.name}.export.weights", said) from None
