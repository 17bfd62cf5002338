"""The tables of a sweep: methods x students, groups in a row, stages of a chain, and every stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from kdscale.report.caches import said_in_short
from kdscale.report.cells import (
    accuracy_cell,
    best_on_test,
    gain_cell,
    leader,
    matrix_cell,
    remarks_on,
    same_network_alone,
    titled,
    to_teacher,
)
from kdscale.report.failures import failures, states
from kdscale.report.grid import Cell, Column, Grid, Screen
from kdscale.report.groups import BASELINE, Group, Layout, against, baseline_of, groups_of, layout_of
from kdscale.report.measured import measured_columns
from kdscale.report.profiles import profile_grid, profiles_of
from kdscale.report.published import published_grids
from kdscale.report.records import StageRecord, SweepRecord, axis_value
from kdscale.report.wording import DASH, count, delta, duration, millis, percent, plural, short_duration

__all__ = ["group_grid", "main_grids", "matrix_grids", "stage_grid", "summary", "whole_grid"]

MOST_GROUPS = 20

_FORWARDS = Column("forwards", title="planned: images through a network in training, teachers' included", optional=True)
_TRAINING = Column("training FLOPs", title="planned: of the whole stage, live teachers' included", optional=True)

Columns = list[tuple[Column, Callable[[Group], Cell]]]


def summary(sweep_folder: Path) -> RenderableType:
    """What came out, for the end of a sweep: what failed first, then the table."""
    sweep = SweepRecord(sweep_folder)
    head = f"{sweep.short}  {plural(len(sweep.trials), 'trial')} · stages: {states(sweep)}"
    parts: list[RenderableType] = [Text(head)]
    for failure in failures(sweep):
        parts.append(Text.assemble((f" {failure.status:<8} ", "red"), failure.cause))
        parts.append(Text(f"          {failure.whom}", style="dim"))
    profiles = profiles_of(sweep)
    steps = [profile_grid(profiles)] if profiles else []
    for grid in (*main_grids(sweep), *published_grids(sweep), *steps):
        parts += [Text(""), Screen(grid)]
    saved = said_in_short(sweep)
    return Stack(*parts, *([Text(saved)] if saved else []))


def main_grids(sweep: SweepRecord, layout: Layout | None = None, groups: Sequence[Group] | None = None) -> list[Grid]:
    """The tables that answer what came out: the matrix first, or the stages where nothing is swept."""
    layout = layout or layout_of(sweep)
    everything = groups_of(sweep, layout.over)
    groups = everything if groups is None else groups
    if layout.is_matrix:
        return matrix_grids(layout, groups)
    if len(everything) == 1:
        return [stage_grid(sweep)]
    first = _first(groups)
    title = (
        f"Test {groups[0].sweep.rated_by}, the best {len(first)} of {len(groups)} by validation"
        if len(first) < len(groups)
        else ""
    )
    return [group_grid(first, title)]


def matrix_grids(layout: Layout, groups: Sequence[Group]) -> list[Grid]:
    """Rows x columns of test accuracy; one table for each value of the axes that are left."""
    if not groups:
        return []
    axes = groups[0].sweep.axes
    grids = []
    for values in itertools.product(*(axes[a] for a in layout.repeat)):
        fixed = dict(zip(layout.repeat, values, strict=True))
        some = [g for g in groups if all(g.axes.get(a) == v for a, v in fixed.items())]
        if some:
            grids.append(_matrix(layout, some, groups, fixed))
    return [replace(grid, remarks=()) for grid in grids[:-1]] + grids[-1:]


def group_grid(groups: Sequence[Group], title: str = "") -> Grid:
    """One row a group: axes, accuracy with its interval, size and speed; the best validation is bold."""
    best = leader(groups)
    axes = list(dict.fromkeys(a for g in groups for a in (*g.changed, *g.axes)))
    columns: Columns = [(Column(a, number=False), lambda g, a=a: Cell(_axis(g, a))) for a in axes]  # type: ignore[misc]
    if len({g.sweep.path for g in groups}) > 1:
        columns.insert(0, (Column("sweep", number=False), lambda g: Cell(g.sweep.path.name)))
    columns.append((Column(f"{groups[0].sweep.rated_by} %"), lambda g: accuracy_cell(g, best=g is best)))
    if any(baseline_of(g, groups) for g in groups):
        columns.append((Column(f"over {BASELINE}"), lambda g: gain_cell(g, groups)))
    columns += measured_columns(groups)
    columns.append((Column("val %"), lambda g: Cell(percent(g.mean("val/rating")))))
    columns.append((Column("agrees %"), lambda g: Cell(percent(g.mean("agreement")))))
    columns += [*_teachers_own(groups), *_wires(groups)]
    if any(best_on_test(g) for g in groups):
        columns.append((Column("best on test (biased)"), lambda g: Cell(percent(best_on_test(g)), tone="muted")))
    columns.append((Column("params"), lambda g: Cell(count(g.mean("params") or None))))
    columns.append((Column("latency", optional=True), lambda g: Cell(millis(g.mean("latency_ms")))))
    columns.append((Column("img/s", optional=True), lambda g: Cell(count(g.mean("images_per_s")))))
    bold = "the best validation" if best else ""
    return _table(
        title or titled(f"Test {groups[0].sweep.rated_by}", groups), columns, groups, remarks_on(groups, groups, bold)
    )


def stage_grid(sweep: SweepRecord) -> Grid:
    """One row a stage, teacher first; over seeds where a stage ran with several."""
    names = list(dict.fromkeys(n for t in sweep.trials for n in t.stages))
    groups = [groups_of(sweep, tuple(sweep.axes), stage=name)[0] for name in names]
    groups = sorted((g for g in groups if g.stages[0].kind == "train"), key=lambda g: g.stages[0].depth)
    columns: Columns = [
        (Column("stage", number=False), lambda g: Cell(g.stages[0].name, g.stages[0].model)),
        (Column("params"), lambda g: Cell(count(g.stages[0].params))),
        (Column("FLOPs", optional=True), lambda g: Cell(count(g.stages[0].flops))),
        (Column(f"{sweep.rated_by} %"), accuracy_cell),
    ]
    if any(same_network_alone(g, groups) for g in groups):
        words = "over the same network without a teacher"
        columns.append((Column("gain", title=words), lambda g: Cell(_gain_over_alone(g, groups))))
    columns += [
        (Column("Δ teacher", title="points to its first teacher"), lambda g: Cell(to_teacher(g))),
        (Column("agrees %"), lambda g: Cell(percent(g.mean("agreement")))),
        *measured_columns(groups),
        *_teachers_own(groups),
        *_wires(groups),
        (Column("latency"), lambda g: Cell(millis(g.mean("latency_ms")))),
        (Column("img/s", optional=True), lambda g: Cell(count(g.mean("images_per_s")))),
        (Column("time", optional=True), lambda g: Cell(short_duration(g.mean("wall_s")))),
        (_FORWARDS, lambda g: Cell(count(g.stages[0].cost.get("forwards") or None))),
        (_TRAINING, lambda g: Cell(count(g.stages[0].cost.get("train_flops") or None))),
        (Column("NLL", optional=True), lambda g: Cell(_nats(g.mean("nll")))),
        (Column("ECE %", optional=True), lambda g: Cell(percent(g.mean("ece")))),
    ]
    return _table(titled("Stages, on test", groups), columns, groups, remarks_on(groups, groups))


def whole_grid(sweep: SweepRecord) -> Grid:
    """One row a unique stage, with the name to paste."""
    words = [Column(c, number=False) for c in ("name", "state", "model")]
    figures = (f"{sweep.rated_by} %", "top-5 %", "NLL", "ECE %", "best val %", "epoch", "params", "FLOPs")
    speeds = ("latency", "p95", "images/s", "time")
    columns = [*words, *(Column(c) for c in (*figures, *speeds)), _FORWARDS, _TRAINING]
    return Grid("Every unique stage", columns, [_whole_row(sweep, stage) for stage in sweep.trained])


def _whole_row(sweep: SweepRecord, stage: StageRecord) -> list[Cell]:
    r = stage.results
    state = "reused" if stage.reused and stage.done else stage.status
    best_epoch = r.get("best_epoch")
    figures = [(percent(value), value) for value in (stage.rating, r.get("top5"))]
    figures += [(_nats(r.get("nll")), r.get("nll"))]
    figures += [(percent(value), value) for value in (r.get("ece"), r.get("best_top1", r.get("best_miou")))]
    figures += [(DASH if best_epoch is None else str(best_epoch), best_epoch)]
    figures += [(count(stage.params), stage.params), (count(stage.flops), stage.flops)]
    figures += [(millis(r.get(name)), r.get(name)) for name in ("latency_ms", "latency_p95_ms")]
    figures += [(count(r.get("images_per_s")), r.get("images_per_s")), (duration(r.get("wall_s")), r.get("wall_s"))]
    figures += [(count(n), n) for n in (stage.cost.get(name) or None for name in ("forwards", "train_flops"))]
    words = [Cell(sweep.name_of(stage)), Cell(state), Cell(stage.model)]
    return [*words, *(Cell(text, sort=-1 if value is None else value) for text, value in figures)]


def _first(groups: Sequence[Group]) -> Sequence[Group]:
    """Of many groups those with the best validation; who wants all sorts the page or reads results.csv."""
    if len(groups) <= MOST_GROUPS:
        return groups
    return sorted(groups, key=lambda g: -(g.mean("val/rating") or 0.0))[:MOST_GROUPS]


def _matrix(layout: Layout, some: Sequence[Group], groups: Sequence[Group], fixed: dict[str, str]) -> Grid:
    row_axis, column_axis = layout.rows or "", layout.columns or ""
    axes = some[0].sweep.axes
    heads = [v for v in axes[column_axis] if any(g.axes[column_axis] == v for g in some)]
    best = {head: leader([g for g in some if g.axes[column_axis] == head]) for head in heads}
    rows = []
    for value in axes[row_axis]:
        line = {g.axes[column_axis]: g for g in some if g.axes[row_axis] == value}
        cells = [matrix_cell(line[h], groups, best=best[h] is line[h]) if h in line else _NOTHING for h in heads]
        rows += [[Cell(axis_value(row_axis, value)), *cells]] if line else []
    columns = [Column(f"{row_axis} \\ {column_axis}", number=False)]
    columns += [Column(axis_value(column_axis, h)) for h in heads]
    title = titled(f"Test {some[0].sweep.rated_by} %", some) + "".join(f", {a} {v}" for a, v in fixed.items())
    bold = "the best validation of its column" if any(best.values()) else ""
    return Grid(title, columns, rows, remarks_on(some, groups, bold))


def _table(title: str, columns: Columns, groups: Sequence[Group], remarks: Sequence[str]) -> Grid:
    return Grid(title, [column for column, _ in columns], [[cell(g) for _, cell in columns] for g in groups], remarks)


_NOTHING = Cell(DASH, tone="muted")


def _teachers_own(groups: Sequence[Group]) -> Columns:
    """What an ensemble gets right stands nowhere else: it is no stage."""
    if all(g.mean("teacher_top1") is None for g in groups):
        return []
    words = "top-1 of whom it hears: of its ensemble, where it has one"
    return [(Column("teacher %", title=words, optional=True), lambda g: Cell(percent(g.mean("teacher_top1"))))]


def _wires(groups: Sequence[Group]) -> Columns:
    """What split heads send, and what it would be without rounding to bytes."""
    if all(g.mean("wire_bytes") is None for g in groups):
        return []
    words = "top-1 if what is sent were not rounded to bytes"
    return [
        (Column("sent B", title="bytes a sample that a split head sends"), _sent),
        (Column("unrounded %", title=words, optional=True), lambda g: Cell(percent(g.mean("top1_of/float_wire")))),
    ]


def _sent(group: Group) -> Cell:
    sent, image = group.mean("wire_bytes"), group.mean("input_bytes")
    return Cell(DASH) if sent is None or image is None else Cell(f"{sent:,.0f}", f"of its image's {image:,.0f}")


def _axis(group: Group, axis: str) -> str:
    """A group's value of an axis or of a changed key."""
    return (group.changed | group.axes).get(axis, DASH)


def _gain_over_alone(group: Group, groups: Sequence[Group]) -> str:
    return delta(against(group, same_network_alone(group, groups))) or DASH


def _nats(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"
