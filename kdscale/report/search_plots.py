"""The figures of a search: its course, and how much each key mattered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdscale.report.plots import new_canvas
from kdscale.report.svg import INK, MUTED, PAPER, STYLE, inline, series

__all__ = ["history_figure", "importance_figure"]

LONGEST_KEY = 30


def history_figure(document: Mapping[str, Any]) -> str:
    """Each trial's figure in the order of asking, and the best so far; empty before there are two."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    shown = [(n, one) for n, one in enumerate(document["asked"]) if _finite(one["value"])]
    complete = [(n, float(one["value"])) for n, one in shown if one["state"] == "complete"]
    if len(complete) < 2:
        return ""
    with mpl.rc_context(STYLE):
        drawn = new_canvas(430, 280)
        better = max if document["direction"] == "maximize" else min
        so_far = list(itertools.accumulate((value for _, value in complete), better))
        x, y = [n for n, _ in complete], so_far
        drawn.axes.step([*x, len(document["asked"]) - 1], [*y, y[-1]], where="post", color=series(0), lw=1.6, zorder=1)
        for n, one in shown:
            _trial(drawn, n, one, document["metric"])
        _focus(drawn.axes, [float(one["value"]) for _, one in shown])
        drawn.axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        drawn.axes.set_xlabel("trial")
        drawn.axes.set_ylabel(document["metric"])
        drawn.axes.margins(x=0.04)
        return inline(drawn.figure, "search-history", f"{document['metric']} by trial", drawn.titles)


def importance_figure(importance: Mapping[str, float], short: Mapping[str, str]) -> str:
    """A bar for each key, the most important on top; empty where nothing is known."""
    if not importance:
        return ""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        drawn = new_canvas(430, 76 + 30 * len(importance))
        for y, (key, share) in enumerate(reversed(list(importance.items()))):
            bar = drawn.axes.barh([y], [100 * share], height=0.55, color=series(0))
            drawn.name(bar[0], f"{key}: {100 * share:.0f} %")
            drawn.axes.annotate(
                f"{100 * share:.0f} %", (100 * share, y), xytext=(5, 0), textcoords="offset points", va="center",
                fontsize=10.5, color=INK,
            )  # fmt: skip
        names = [_shortened(short.get(key, key)) for key in reversed(list(importance))]
        drawn.axes.set_yticks(range(len(names)), names)
        drawn.axes.tick_params(axis="y", labelcolor=INK)
        drawn.axes.grid(visible=False, axis="y")
        drawn.axes.set_xlim(0, 108)
        drawn.axes.set_xlabel("share of what decides, %")
        return inline(drawn.figure, "search-importance", "importance of each key", drawn.titles)


def _trial(drawn: Any, n: int, one: Mapping[str, Any], metric: str) -> None:
    """A filled mark is a whole trial, a hollow one was stopped early at that figure."""
    complete = one["state"] == "complete"
    colour = series(0) if complete else MUTED
    mark = drawn.axes.scatter(
        [n], [one["value"]], s=34 if complete else 22, facecolor=colour if complete else PAPER, edgecolor=colour,
        lw=1.3, zorder=3 if complete else 2,
    )  # fmt: skip
    values = ", ".join(f"{key} {value}" for key, value in one["values"].items())
    said = "" if complete else f" when stopped at epoch {one['epoch']}"
    drawn.name(mark, f"{one['trial']}: {metric} {one['value']:.4g}{said}; {values}")


def _focus(axes: Any, values: Sequence[float]) -> None:
    """One trial that diverged would press all others into a line."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    room = max(0.6 * (high - low), 1e-6)
    axes.set_ylim(max(ordered[0], low - 2 * room) - 0.1 * room, min(ordered[-1], high + 2 * room) + 0.1 * room)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_KEY else f"…{name[1 - LONGEST_KEY :]}"
