"""Accuracy by class: of every network, or of the classes that matter where there are too many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdscale.report.groups import Group
from kdscale.report.records import StageRecord, SweepRecord
from kdscale.report.wording import percent

__all__ = ["Heat", "class_heat"]

Cells = list[tuple[str, float]]

MOST_CLASSES, MOST_ROWS, MOST_TEACHERS = 20, 24, 6


@dataclass(frozen=True)
class Heat:
    """Accuracy by class: rows are networks, each cell coloured by its distance from the worst to the best."""

    classes: list[str]
    rows: list[tuple[str, Cells]]
    """Name and, for each class, (percent, strength in [0, 1])."""
    remark: str


def class_heat(sweep: SweepRecord, groups: Sequence[Group]) -> Heat | None:
    """Accuracy by class of teachers and groups; None where nothing was measured or the classes differ."""
    last = {m.stage.digest for g in groups for m in g.members}
    others = [s for s in sweep.trained if s.digest not in last and s.results.get("per_class")]
    found = [(sweep.local_name(s), _per_class([s])) for s in others[:MOST_TEACHERS]]
    found += [(g.label, _per_class(g.stages)) for g in groups]
    rows = [(name, values) for name, values in found if values][:MOST_ROWS]
    if len({len(values) for _, values in rows}) != 1:
        return None
    names = next((s.class_names for s in sweep.trained if s.class_names), [str(i) for i in range(len(rows[0][1]))])
    chosen, remark = _chosen(rows)
    return Heat([names[i] for i in chosen], _shaded(rows, chosen), remark)


def _chosen(rows: Sequence[tuple[str, list[float]]]) -> tuple[list[int], str]:
    """All classes, or of many those on which the last row falls furthest behind the first."""
    (first, theirs), (last, ours) = rows[0], rows[-1]
    classes = list(range(len(theirs)))
    if len(classes) <= MOST_CLASSES:
        return classes, ""
    chosen = sorted(classes, key=lambda i: ours[i] - theirs[i])[:MOST_CLASSES]
    which = f"on which {last} falls furthest behind {first}"
    return chosen, f"The {MOST_CLASSES} of {len(classes)} classes {which}; results.json has all."


def _shaded(
    rows: Sequence[tuple[str, list[float]]], chosen: Sequence[int]
) -> list[tuple[str, list[tuple[str, float]]]]:
    known = [values[i] for _, values in rows for i in chosen if not math.isnan(values[i])]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def strength(value: float) -> float:
        return 0.0 if math.isnan(value) else (value - low) / max(high - low, 1e-9)

    return [(name, [(percent(values[i], 1), strength(values[i])) for i in chosen]) for name, values in rows]


def _per_class(stages: Sequence[StageRecord]) -> list[float]:
    """Means over stages; nan for a class without test images."""
    known = [s.results["per_class"] for s in stages if s.results.get("per_class")]
    columns = zip(*known, strict=True) if known else ()
    return [math.nan if None in column else sum(column) / len(column) for column in columns]
