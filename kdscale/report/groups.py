"""Trials put together that differ in nothing but what is averaged over, and compared with each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kdscale.report.records import StageRecord, SweepRecord, TrialRecord, axis_value
from kdscale.report.results import figures
from kdscale.report.statistics import Interval, Paired, interval, median, paired

__all__ = ["BASELINE", "Group", "Layout", "Member", "against", "as_number", "baseline_of", "groups_of", "layout_of"]

BASELINE = "ce"
"""The axis value that others are compared with: the student trained on labels alone."""

MOST_COLUMNS = 8
MOST_MATRICES = 6


class Member(NamedTuple):
    """One trial of a group: its values of the averaged axes, and the stage that is looked at."""

    key: tuple[str, ...]
    trial: TrialRecord
    stage: StageRecord


@dataclass(frozen=True)
class Group:
    """Trials with equal axes but for those averaged over."""

    sweep: SweepRecord
    axes: dict[str, str]
    members: tuple[Member, ...]
    over: tuple[str, ...] = ()
    """Axes that are averaged over."""
    changed: dict[str, str] = field(default_factory=dict)
    """Keys in which its sweep differs from the other sweeps shown."""

    @property
    def label(self) -> str:
        """Axis values joined; a bare number says of what."""
        return " · ".join(_worded(a, v) for a, v in self.axes.items()) or self.members[0].stage.name

    @property
    def repeats(self) -> str:
        """What its members are: seeds, or trials that differ in more than that."""
        return "seed" if all(len(set(values)) == 1 or axis == "seed" for axis, values in self._averaged()) else "trial"

    def _averaged(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(axis, tuple(m.key[i] for m in self.members)) for i, axis in enumerate(self.over)]

    @property
    def stages(self) -> list[StageRecord]:
        """Its unique stages: one that several seeds share stands once."""
        return list({m.stage.digest: m.stage for m in self.members}.values())

    def values(self, metric: str) -> dict[tuple[str, ...], float]:
        """The figure of each unique finished stage, by what was averaged over."""
        first = {m.stage.digest: m for m in reversed(self.members)}
        found = {m.key: figures(m.stage).get(metric) for m in first.values()}
        return {key: value for key, value in sorted(found.items()) if value is not None}

    def interval(self, metric: str = "rating") -> Interval | None:
        """Mean and 95 % interval of a figure."""
        return interval(list(self.values(metric).values()))

    def mean(self, metric: str) -> float | None:
        """Mean of a figure; None where no stage has it."""
        found = self.interval(metric)
        return found.mean if found else None

    def typical(self, metric: str) -> StageRecord:
        """The stage with the median figure: the one to export, as the luckiest flatters."""
        values = self.values(metric)
        if not values:
            return self.members[0].stage
        middle = median(list(values.values()))
        key = next(k for k, v in values.items() if v == middle)
        return next(m.stage for m in self.members if m.key == key)


@dataclass(frozen=True)
class Layout:
    """Which axes are averaged over, and which become rows, columns and repetitions of a matrix."""

    over: tuple[str, ...]
    rows: str | None = None
    columns: str | None = None
    repeat: tuple[str, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """Whether two axes span a table."""
        return self.rows is not None and self.columns is not None


def layout_of(sweep: SweepRecord, over: Sequence[str] | None = None) -> Layout:
    """Choose the matrix: methods x students where there are such axes, else the first two axes that fit.

    Args:
        sweep: whose axes.
        over: axes to average over; None means `seed`, if there is one.
    """
    averaged = tuple(over) if over is not None else tuple(a for a in sweep.axes if a == "seed")
    free = [a for a in sweep.axes if a not in averaged and len(sweep.axes[a]) > 1]
    narrow = [a for a in free if len(sweep.axes[a]) <= MOST_COLUMNS]
    if len(free) < 2 or not narrow:
        return Layout(averaged)
    columns = "student" if "student" in narrow else next((a for a in reversed(narrow[:2]) if a != "method"), narrow[0])
    rows = "method" if "method" in free and columns != "method" else next(a for a in free if a != columns)
    repeat = tuple(a for a in free if a not in (rows, columns))
    matrices = math.prod(len(sweep.axes[a]) for a in repeat)
    return Layout(averaged, rows, columns, repeat) if matrices <= MOST_MATRICES else Layout(averaged)


def groups_of(
    sweep: SweepRecord,
    over: Sequence[str],
    keep: Callable[[TrialRecord, StageRecord], bool] | None = None,
    stage: str | None = None,
) -> list[Group]:
    """Group a sweep's trials by the axes that are not averaged over, in the order of the plan.

    Args:
        sweep: whose trials.
        over: axes to average over.
        keep: which trials count.
        stage: name of the stage looked at; default each trial's last.
    """
    found: dict[tuple[tuple[str, str], ...], list[Member]] = {}
    for trial in sweep.trials:
        name = stage or sweep.final(trial)
        if name not in trial.stages:
            continue
        record = sweep.stage(trial, name)
        if keep is None or keep(trial, record):
            axes = tuple((a, v) for a, v in trial.axes.items() if a not in over)
            found.setdefault(axes, []).append(Member(tuple(trial.axes.get(a, "") for a in over), trial, record))
    return [Group(sweep, dict(axes), tuple(members), tuple(over)) for axes, members in found.items()]


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group with the same axes but for one that is `ce`; None for that group itself."""
    if BASELINE in group.axes.values():
        return None
    wanted = [group.axes | {axis: BASELINE} for axis in group.axes]
    same = (g for g in groups if g.sweep is group.sweep and g.changed == group.changed)
    return next((g for g in same if g.axes in wanted), None)


def against(group: Group, other: Group | None, metric: str = "rating") -> Paired | None:
    """The difference of two groups, paired by what both were averaged over."""
    return None if other is None else paired(_keys(group.values(metric)), _keys(other.values(metric)))


def _worded(axis: str, value: str) -> str:
    said = axis_value(axis, value)
    return f"{axis.rpartition('.')[2]} {said}" if as_number(said) is not None else said


def as_number(text: str) -> float | None:
    """The number that a text is; None for words."""
    try:
        return float(text)
    except ValueError:
        return None


def _keys(values: Mapping[tuple[str, ...], float]) -> dict[object, float]:
    return dict(values.items())
