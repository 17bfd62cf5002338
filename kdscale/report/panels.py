"""Which points, lines and colours stand for what in a sweep's figures."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kdscale.report import plots
from kdscale.report.failures import stage_names
from kdscale.report.groups import BASELINE, Group, Layout, as_number
from kdscale.report.records import StageRecord, SweepRecord, axis_value
from kdscale.report.results import figures
from kdscale.report.svg import SERIES
from kdscale.report.wording import count, millis, percent

__all__ = [
    "Colours",
    "CurveRow",
    "colours_of",
    "curve_rows",
    "dependence",
    "intervals",
    "trade_offs",
]

_TERM = "train/term/"
FEWEST_VALUES = 4
LEAST_SPREAD = 1.05
"""Costs that differ by less are one cost: nothing is traded."""
MOST_INTERVALS = 30
MOST_CURVE_ROWS = 12
MOST_TEACHERS = 12
MEASURED = "What strategies measure"
_UNDRAWN = {"train/images_per_s", "train/skipped"}
_CURVES = {
    "train/loss": "training loss",
    "val/top1": "validation top-1 %",
    "val/miou": "validation mIoU %",
    "train/lr": "learning rate",
}


@dataclass(frozen=True)
class Colours:
    """One axis, or the stage names, by colour."""

    axis: str | None
    values: list[str]

    def of(self, name: str) -> int:
        """Number of the colour; beyond the palette it is the muted one."""
        return self.values.index(name) if name in self.values else len(SERIES)

    def of_group(self, group: Group) -> int:
        """Number of the colour of a row of results."""
        return self.of(group.axes[self.axis] if self.axis in group.axes else group.stages[0].name)

    def legend(self, used: Collection[int] | None = None) -> list[tuple[int, str]]:
        """(number, word) for each colour, or for each of those in use."""
        words = self.values if self.axis is None else [axis_value(self.axis, v) for v in self.values]
        return [(i, word) for i, word in enumerate(words[: len(SERIES)]) if used is None or i in used]


@dataclass(frozen=True)
class CurveRow:
    """Panels side by side with one legend."""

    title: str
    legend: list[tuple[int, str]]
    panels: list[str]


def colours_of(sweep: SweepRecord, layout: Layout) -> Colours:
    """Colour by method where there is such an axis, else by the rows of the matrix, else by stage."""
    free = [a for a in sweep.axes if a not in layout.over and 1 < len(sweep.axes[a]) <= len(SERIES)]
    axis = "method" if "method" in free else layout.rows if layout.rows in free else next(iter(free), None)
    if axis is not None:
        return Colours(axis, sweep.axes[axis])
    return Colours(None, stage_names(sweep.trained) if len(sweep.trials) == 1 or not layout.is_matrix else [])


def intervals(groups: Sequence[Group], colours: Colours) -> str:
    """The dot plot of means; empty where no group has several seeds."""
    points = [_point(g, colours, 0.0) for g in groups if g.mean("rating") is not None]
    if not any(p.half is not None for p in points) or len(points) < 2:
        return ""
    best = sorted(points, key=lambda p: -p.value)[:MOST_INTERVALS]
    bases = {g.mean("rating") for g in groups if BASELINE in g.axes.values() and g.mean("rating") is not None}
    reference = bases.pop() if len(bases) == 1 else None
    return plots.interval_figure(best, "means", reference, BASELINE, groups[0].sweep.rated_by)


def trade_offs(sweep: SweepRecord, groups: Sequence[Group], colours: Colours) -> list[str]:
    """Accuracy against parameters and against latency; teachers as hollow marks."""
    drawn = []
    for metric, unit, label in (
        ("params", 1e6, "parameters, millions"),
        ("latency_ms", 1.0, "latency of one image, ms"),
    ):
        points = [
            p
            for g in groups
            if (p := _point(g, colours, (g.mean(metric) or 0.0) / unit)) and p.cost and not math.isnan(p.value)
        ]
        points += _teacher_points(sweep, groups, colours, metric, unit)
        costs = [p.cost for p in points]
        if len(points) > 1 and max(costs) > LEAST_SPREAD * min(costs):
            drawn.append(plots.trade_off_figure(points, metric.split("_")[0], label, sweep.rated_by))
    return drawn


def dependence(sweep: SweepRecord, groups: Sequence[Group], colours: Colours) -> list[str]:
    """Accuracy against each swept number that takes enough values for a course to be seen."""
    drawn = []
    for number, axis in enumerate(a for a in sweep.axes if any(a in g.axes for g in groups)):
        values = [as_number(v) for v in sweep.axes[axis]]
        if len(values) < FEWEST_VALUES or None in values:
            continue
        points = [_point(g, colours, as_number(g.axes[axis]) or 0.0) for g in groups if g.mean("rating") is not None]
        if len(points) > 1:
            drawn.append(plots.trade_off_figure(points, f"axis{number}", axis, sweep.rated_by, front=False))
    return drawn


def curve_rows(sweep: SweepRecord, colours: Colours) -> list[CurveRow]:
    """Loss, validation and learning rate; a chain's stages in one row, many trials by stage name."""
    names = stage_names(sweep.trained)
    if len(sweep.trained) == len(names) <= len(SERIES):
        chain = Colours(None, names)
        rows = [_curve_row(sweep, sweep.trained, chain, "all", "")]
        terms = Colours(None, list(dict.fromkeys(t for s in sweep.trained if len(_terms(s)) > 1 for t in _terms(s))))
        panels = [panel for i, s in enumerate(sweep.trained) if (panel := _term_panel(s, f"terms{i}", terms))]
        rows += [CurveRow("Terms of the loss, unweighted", terms.legend(), panels)] if panels else []
        rows.append(_measured_row(sweep.trained))
    else:
        some = names[:MOST_CURVE_ROWS]
        rows = [
            _curve_row(sweep, [s for s in sweep.trained if s.name == n], colours, f"c{i}", n)
            for i, n in enumerate(some)
        ]
        each = {metric: metric.removeprefix("train/") for s in sweep.trained for metric in _measured(s)}
        rows.append(_curve_row(sweep, sweep.trained, colours, "measured", MEASURED, each))
    return [row for row in rows if row.panels]


def _point(group: Group, colours: Colours, cost: float) -> plots.Point:
    found, colour = group.interval(), colours.of_group(group)
    if found is None:
        return plots.Point(group.label, cost, math.nan)
    title = _said(group.label, percent(found), group.mean("params"), group.mean("latency_ms"))
    values = list(group.values("rating").values())
    return plots.Point(group.label, cost, found.mean, found.half, colour, values=values, title=title)


def _teacher_points(
    sweep: SweepRecord, groups: Sequence[Group], colours: Colours, metric: str, unit: float
) -> list[plots.Point]:
    last = {m.stage.digest for g in groups for m in g.members}
    others = [s for s in sweep.trained if s.digest not in last and s.rating is not None]
    points = []
    for stage in others if len(others) <= MOST_TEACHERS else others[:1]:
        rating, cost = stage.rating, figures(stage).get(metric)
        if cost and rating is not None:
            name, colour = sweep.local_name(stage), colours.of(stage.name)
            title = _said(name, percent(rating), stage.params, stage.results.get("latency_ms"))
            points.append(plots.Point(name, cost / unit, rating, None, colour, filled=False, title=title))
    return points


def _said(name: str, rating: str, params: float | int | None, latency: float | None) -> str:
    return f"{name}: {rating} % · {count(params)} · {millis(latency)}"


def _curve_row(
    sweep: SweepRecord, stages: Sequence[StageRecord], colours: Colours, prefix: str, title: str,
    metrics: Mapping[str, str] = _CURVES,
) -> CurveRow:  # fmt: skip
    panels = []
    used: set[int] = set()
    for metric, what in metrics.items():
        lines = [line for stage in stages if (line := _line(sweep, stage, metric, colours, len(stages)))]
        used |= {line.colour for line in lines}
        if lines:
            name = f"{prefix}-{metric.replace('/', '-')}"
            panels.append(plots.curve_figure(lines, name, what, share=metric in ("val/top1", "val/miou")))
    return CurveRow(title, colours.legend(used) if len(used) > 1 else [], panels)


def _line(sweep: SweepRecord, stage: StageRecord, metric: str, colours: Colours, among: int) -> plots.Line | None:
    value = _shared_value(sweep, stage, colours.axis) if colours.axis else stage.name
    points = plots.metric_line(stage.curves, metric)
    strong = among <= len(SERIES)
    return plots.Line(sweep.local_name(stage), points, colours.of(value), strong=strong) if points else None


def _shared_value(sweep: SweepRecord, stage: StageRecord, axis: str) -> str:
    """A stage's value on an axis; empty where trials of several values share it."""
    values = {t.axes.get(axis, "") for t in sweep.trials if stage.digest in t.stages.values()}
    return values.pop() if len(values) == 1 else ""


def _terms(stage: StageRecord) -> list[str]:
    return sorted(name.removeprefix(_TERM) for name in stage.curves if name.startswith(_TERM))


def _term_panel(stage: StageRecord, name: str, colours: Colours) -> str:
    if len(_terms(stage)) < 2:
        return ""
    lines = [plots.Line(t, plots.metric_line(stage.curves, _TERM + t), colours.of(t)) for t in _terms(stage)]
    return plots.curve_figure([line for line in lines if line.points], name, stage.name)


def _measured_row(stages: Sequence[StageRecord]) -> CurveRow:
    """What is named GROUP/a and GROUP/b shares a panel."""
    shown: dict[tuple[str, str], dict[str, str]] = {}
    for stage in stages:
        for metric in _measured(stage):
            group, _, line = metric.removeprefix("train/").rpartition("/")
            shown.setdefault((stage.name, group or line), {})[line] = metric
    colours = Colours(None, list(dict.fromkeys(line for lines in shown.values() for line in lines)))
    curves = {stage.name: stage.curves for stage in stages}
    panels = []
    for i, ((name, group), metrics) in enumerate(shown.items()):
        lines = [plots.Line(n, plots.metric_line(curves[name], m), colours.of(n)) for n, m in metrics.items()]
        panels.append(plots.curve_figure(lines, f"measured{i}", f"{name}: {group}", share="top1" in group))
    return CurveRow(MEASURED, colours.legend(), panels)


def _measured(stage: StageRecord) -> list[str]:
    """A strategy's figures, and what of its parts is validated."""
    others = (m for m in stage.curves if m not in _CURVES and m not in _UNDRAWN and not m.startswith(_TERM))
    return sorted(m for m in others if m.startswith("train/") or (m.startswith("val/") and m.count("/") > 1))
