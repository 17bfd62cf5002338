"""Groups in the order of a validation figure, over one sweep or several, and what tells them apart."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kdscale.errors import ConfigError
from kdscale.report.grid import Cell, Column, Grid
from kdscale.report.groups import BASELINE, Group, against, baseline_of, groups_of, layout_of
from kdscale.report.records import StageRecord, SweepRecord, TrialRecord
from kdscale.report.results import SCHEMA, figures
from kdscale.report.statistics import Interval
from kdscale.report.where import Filter
from kdscale.report.wording import DASH, count, delta, millis, p_value, percent, plural, points

__all__ = [
    "as_json", "chosen_groups", "filter_of", "kept_by", "ranked", "ranking_grid", "refuse_figures_of_test",
    "smaller_is_better",
]  # fmt: skip

DISTINCT = 0.05
MOST_ROWS = 20
SMALLER_IS_BETTER = ("nll", "ece", "kl", "loss", "params", "flops", "latency", "wall")
ON_TEST = frozenset(
    {
        "rating",
        "miou",
        "pixel_accuracy",
        "best_miou_on_test",
        "top1",
        "top5",
        "nll",
        "ece",
        "agreement",
        "kl",
        "teacher_top1",
        "top1_best_on_test",
    }
)
_MEASURED = ("metrics.", "sets.")
"""Begins of the names of own metrics and of figures on further test sets."""
NO_DIFFERENCE = ("name", "seed", "sweep", "tracking", "resources", "limits", "plugins", "engine", "expect", "eval")
"""Keys of sweep.yaml that never tell two sweeps' results apart, or that axes say already."""


def chosen_groups(
    sweeps: Sequence[SweepRecord], over: Sequence[str] | None = None, where: str | None = None
) -> tuple[list[Group], Filter | None]:
    """Groups of all sweeps that the condition keeps, with the keys in which the sweeps differ.

    Raises:
        ConfigError: the condition or an axis is unknown.
    """
    keep = filter_of(sweeps, where) if where else None
    changed = changed_keys(sweeps)
    known = {axis for sweep in sweeps for axis in sweep.axes}
    if missing := [axis for axis in over or () if axis not in known]:
        raise ConfigError(f"--over {missing[0]}: there is no such axis; there are {', '.join(sorted(known)) or 'none'}")
    found: list[Group] = []
    for sweep in sweeps:
        own = None if over is None else [axis for axis in over if axis in sweep.axes]
        groups = groups_of(sweep, layout_of(sweep, own).over, kept_by(keep))
        found += [replace(group, changed=changed[sweep.path]) for group in groups]
    return found, keep


def ranked(groups: Sequence[Group], metric: str) -> list[Group]:
    """Order by the mean of a validation figure, best first; groups without one are left out.

    Raises:
        ConfigError: the figure is unknown, or one of test: choosing by it would flatter what is chosen.
    """
    known = sorted({name for g in groups for s in g.stages for name in figures(s)})
    refuse_figures_of_test(metric, "--best ")
    if metric not in known:
        near = difflib.get_close_matches(metric, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none yet'}"
        raise ConfigError(f"--best {metric}: no finished trial has such a figure; {hint}")
    sign = 1 if smaller_is_better(metric) else -1
    rated = [(value, g) for g in groups if (value := g.mean(metric)) is not None and g.mean("rating") is not None]
    return [g for _, g in sorted(rated, key=lambda pair: sign * pair[0])]


def refuse_figures_of_test(metric: str, said: str) -> None:
    """Raises: ConfigError: it is a figure of test; `said` is what asks for it, such as `--best `."""
    if metric in ON_TEST or metric.startswith(("test/", *_MEASURED)):
        raise ConfigError(
            f"{said}{metric}: that is a figure of test, and choosing by it flatters what is chosen; "
            f"{said}val/{_plain(metric)} chooses on validation and shows test"
        )


def smaller_is_better(metric: str) -> bool:
    """Whether less of a figure is better."""
    return any(word in metric for word in SMALLER_IS_BETTER)


def _plain(metric: str) -> str:
    """What a figure of test is called on validation: test/top1, top1_best_on_test and best_miou_on_test are of one."""
    if metric.startswith(_MEASURED):
        return "rating"
    return re.sub(r"^(test/|best_)|(_best)?_on_test$", "", metric)


def ranking_grid(groups: Sequence[Group], metric: str) -> Grid:
    """The table of a ranking: chosen by validation, shown on test, with what is not distinguishable said."""
    first = groups[0]
    of_sweeps = len({g.sweep.path for g in groups}) > 1
    columns = [
        Column("#"),
        Column("trial", number=False),
        Column(f"{first.sweep.rated_by} %"),
        Column("n", title="repeats"),
        Column("params"),
    ]
    columns += [Column("latency"), Column(metric, optional=True), Column("", number=False)]
    rows = []
    for number, group in enumerate(groups[:MOST_ROWS], 1):
        label = f"{group.sweep.short}: {group.label}" if of_sweeps else group.label
        changed = ", ".join(f"{key}={value}" for key, value in group.changed.items())
        cells = [Cell(str(number)), Cell(label, changed), Cell(percent(group.interval()), best=group is first)]
        cells += [Cell(str(len(group.values("rating")))), Cell(count(group.mean("params")))]
        cells += [Cell(millis(group.mean("latency_ms"))), Cell(_written(metric, group.mean(metric)))]
        rows.append([*cells, Cell(_verdict(group, first, groups), tone="muted")])
    export = first.typical(metric)
    remarks = [f"Chosen by {metric} (mean over repeats); {first.sweep.rated_by} is test, of the last epoch."]
    which = f"The first, its median {first.repeats} and not the luckiest" if len(first.stages) > 1 else "The first"
    remarks.append(f"{which}: {first.sweep.name_of(export)}")
    if export.folder:
        remarks.append(f"Its weights: {export.folder / 'student.safetensors'}")
    if len(groups) > MOST_ROWS:
        remarks.insert(0, f"{len(groups) - MOST_ROWS} more; --json lists them all.")
    return Grid(f"Best {metric} of {plural(len(groups), 'group')}", columns, rows, remarks)


def as_json(groups: Sequence[Group], all_groups: Sequence[Group], metric: str | None) -> dict[str, Any]:
    """The groups as one JSON document, figures in the units of results.json."""
    return {
        "schema": SCHEMA,
        "chosen_by": metric,
        "groups": [
            {
                "sweep": g.sweep.path.name,
                "axes": g.axes,
                "changed": g.changed,
                "names": [g.sweep.name_of(s) for s in g.stages],
                "typical": g.sweep.name_of(g.typical(metric or "val/rating")),
                "figures": {name: _spread(g.interval(name)) for name in figures(g.stages[0])},
                f"over_{BASELINE}": _gain(g, all_groups),
            }
            for g in groups
        ],
    }


def changed_keys(sweeps: Sequence[SweepRecord]) -> dict[Path, dict[str, str]]:
    """For each sweep the keys of its config that not all sweeps agree on, with its own values."""
    flat = {sweep.path: dict(_leaves(yaml.safe_load(sweep.config) or {})) for sweep in sweeps}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    differ = [k for k in keys if k.split(".")[0] not in NO_DIFFERENCE and len({v.get(k) for v in flat.values()}) > 1]
    return {path: {key: values.get(key, DASH) for key in differ} for path, values in flat.items()}


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every leaf; items of lists go by their id or name, as overrides do."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{item.get('id') or item.get('name') or index}")
    else:
        yield prefix, str(value)


def filter_of(sweeps: Sequence[SweepRecord], where: str) -> Filter:
    """A condition over the figures and axes of some sweeps. Raises: ConfigError."""
    axes = {axis: values for sweep in sweeps for axis, values in sweep.axes.items()}
    names = {name for sweep in sweeps for stage in sweep.trained for name in figures(stage)}
    return Filter(where, {"stage", "model", "state", *names, *axes}, {v for values in axes.values() for v in values})


def kept_by(condition: Filter | None) -> Callable[[TrialRecord, StageRecord], bool] | None:
    """Whether a trial with its stage fits a condition; None where there is none."""
    if condition is None:
        return None

    def keep(trial: TrialRecord, stage: StageRecord) -> bool:
        words: Mapping[str, Any] = {"stage": stage.name, "model": stage.model, "state": stage.status}
        return condition({**figures(stage), **words, **trial.axes})

    return keep


def _verdict(group: Group, first: Group, groups: Sequence[Group]) -> str:
    """How a group compares with the baseline, or with the first where that is not clear."""
    if group is not first and (to_first := against(first, group)) is not None and to_first.p is not None:
        if to_first.p >= DISTINCT:
            return f"not distinguishable from 1 (paired, {p_value(to_first.p)})"
        if baseline_of(group, groups) is None:
            return f"{points(-to_first.mean)} to 1, {p_value(to_first.p)}"
    over = against(group, baseline_of(group, groups))
    return f"{delta(over).replace(' ', f' over {BASELINE}, ', 1)}" if over and over.p is not None else _without_p(over)


def _without_p(over: Any) -> str:
    return f"{points(over.mean)} over {BASELINE}" if over else ""


def _gain(group: Group, groups: Sequence[Group]) -> dict[str, Any] | None:
    found = against(group, baseline_of(group, groups))
    return None if found is None else {"mean": found.mean, "ci95": found.half, "p": found.p, "n": found.n}


def _spread(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {"mean": found.mean, "ci95": found.half, "n": found.n}


def _written(metric: str, value: float | None) -> str:
    share = any(word in metric for word in ("rating", "top1", "miou", "top5", "agreement", "accuracy"))
    return percent(value) if share else DASH if value is None else f"{value:.4g}"
