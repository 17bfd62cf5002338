"""Columns of what a config asks to be measured besides: own metrics, and further test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdscale.report.grid import Cell, Column
from kdscale.report.groups import Group
from kdscale.report.results import figures
from kdscale.report.wording import DASH, percent

__all__ = ["measured_columns"]

MOST_COLUMNS = 8
"""Of a table; results.csv has all."""


def measured_columns(groups: Sequence[Group]) -> list[tuple[Column, Callable[[Group], Cell]]]:
    """One for each own metric, then one for each further set's top-1 or mIoU, where any group has it."""
    found = dict.fromkeys(name for g in groups for stage in g.stages for name in figures(stage))
    own = [name for name in found if name.startswith("metrics.")]
    sets = [name for name in found if name.startswith("sets.") and name.count(".") == 2 and _rates(name)]
    columns = [_metric(name) for name in own] + [_set(name) for name in sets]
    return columns[:MOST_COLUMNS]


def _rates(name: str) -> bool:
    return name.rpartition(".")[2] in ("top1", "miou")


def _metric(name: str) -> tuple[Column, Callable[[Group], Cell]]:
    column = Column(name.removeprefix("metrics."), title="own metric of the test set", optional=True)
    return column, lambda g: Cell(_plain(g.mean(name)), sort=g.mean(name))


def _set(name: str) -> tuple[Column, Callable[[Group], Cell]]:
    _, which, figure = name.split(".")
    column = Column(f"{which} %", title=f"{figure} on a further test set", optional=True)
    return column, lambda g: Cell(percent(g.interval(name)), sort=g.mean(name))


def _plain(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"
