"""The stages that run, a row each: how far, how fast, how long yet, where."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdscale.jobs.overview import StageView
from kdscale.jobs.siblings import host
from kdscale.jobs.wording import duration, figure

__all__ = ["running_table"]

_NEEDS = {"step": 17, "": 6, "left": 12, "img/s": 8, "val top-1": 11, "loss": 9, "host": 12, "epoch": 9, "job": 9}
"""Columns and the room that they take, the most wanted first: a narrow terminal shows fewer, none cut."""


def running_table(stages: Sequence[StageView], width: int, most: int) -> list[RenderableType]:
    """The table; of too many stages those that will take longest, and what is left out in a line.

    Args:
        stages: all that run.
        width: columns of the terminal.
        most: rows.
    """
    shown = list(stages)
    if len(stages) > most + 1:
        shown = sorted(stages, key=lambda s: -1.0 if (left := s.seconds_left()) is None else left, reverse=True)[:most]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(" running", no_wrap=True)
    titles = _columns(shown, width)
    for title in titles:
        table.add_column(title, no_wrap=True, justify="left" if title in ("host", "job") else "right")
    for stage in shown:
        cells = _cells(stage)
        table.add_row(Text(f" {stage.name}", style="cyan"), *(cells[title] for title in titles))
    left_out = [stage for stage in stages if stage not in shown]
    return [table, *([_rest(left_out)] if left_out else [])]


def _columns(stages: Sequence[StageView], width: int) -> list[str]:
    free = width - max(len(stage.name) for stage in stages) - 3
    chosen = []
    for title, room in _NEEDS.items():
        free -= room + (max(len(stage.unit) for stage in stages) if title == "step" else 0)
        if free < 0:
            break
        chosen.append(title)
    jobs = any(stage.job for stage in stages)
    return [title for title in chosen if jobs or title != "job"]


def _cells(stage: StageView) -> dict[str, str]:
    left, steps = stage.seconds_left(), stage.steps
    return {
        "step": f"{stage.step:,}/{steps:,}{stage.unit}" if steps else "",
        "": f"{stage.step / steps:.0%}" if steps else "",
        "left": stage.status if stage.status != "running" else "" if left is None else duration(left),
        "img/s": figure(stage.metric("train/images_per_s"), ",.0f"),
        "val top-1": stage.validated,
        "loss": figure(stage.metric("train/loss")),
        "host": host(stage) or (stage.job.nodes if stage.job else ""),
        "epoch": figure(stage.state.get("epoch"), ".2f"),
        "job": stage.job.id if stage.job else "",
    }


def _rest(stages: Sequence[StageView]) -> Text:
    """The rows that were left out, in a line."""
    shares = sorted(stage.step / stage.steps for stage in stages if stage.steps)
    left = sorted(s for s in (stage.seconds_left() for stage in stages) if s is not None)
    parts = [f"and {len(stages)} more"]
    if shares:
        parts.append(f"{shares[0]:.0%} to {shares[-1]:.0%} done")
    if left:
        parts.append(f"{duration(left[0])} to {duration(left[-1])} left")
    return Text(f"{' ' * 14}{', '.join(parts)}", style="dim")
