"""The live view of a sweep while it runs: a table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdscale.jobs.overview import STYLE, StageView, SweepView
from kdscale.jobs.wording import clock, duration, figure
from kdscale.pipeline.artifacts import SweepFolder
from kdscale.report.rating import rated

__all__ = ["Watch"]

REFRESH_S = 0.5
PLAIN_EVERY_S = 30.0
BAR = 16
ROWS_KEPT_FREE = 4
"""Lines of the terminal left to headline, cursor and what is printed above."""


class Watch:
    """Shows all running stages of a sweep; what finishes is said above them and scrolls away.

    Args:
        folder: runs/sweeps/<name>-<digest8>, with its plan.
        console: where to show it; a live table if it is a terminal, else lines. NO_COLOR is the console's to heed.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self._view = SweepView(SweepFolder(folder))
        self._console = console
        self._begun = time.time()
        self._looked = 0.0
        self._said_progress = time.monotonic()
        self._before = {digest: stage.status for digest, stage in self._view.stages.items()}
        self._live: Live | None = None

    def __enter__(self) -> Watch:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """Print a line; above the live table where there is one."""
        if self._live is None:
            text = f"{time.strftime('%H:%M:%S')}  {text}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self) -> None:
        """Look again and show it; call it as often as you like."""
        now = time.monotonic()
        if now - self._looked < REFRESH_S:
            return
        self._looked = now
        self._view.refresh()
        self._say_events()
        if self._live is not None:
            self._live.update(self._screen(), refresh=True)
        elif now - self._said_progress >= PLAIN_EVERY_S:
            self._said_progress = now
            for stage in self._shown():
                self.say(_line(stage))

    def look_at_plan(self) -> None:
        """Read the plan again, which has grown."""
        self._view = SweepView(self._view.folder)
        self._before = {digest: self._before.get(digest, "waiting") for digest in self._view.stages}

    # ------------------------------------------------------------------ events

    def _say_events(self) -> None:
        for digest, stage in self._view.stages.items():
            before, self._before[digest] = self._before[digest], stage.status
            if stage.status == "done" and before != "done":
                self._say_done(stage)
            elif stage.status == "running" and before not in ("running", "evaluating") and self._live is None:
                resumed = stage.attempt.get("resumed_from")
                self.say(f"{stage.short} running" + (f", resumed at step {resumed:,}" if resumed else ""))

    def _say_done(self, stage: StageView) -> None:
        said = (
            f"  {stage.outcome}" + (" on test" if rated(stage.state.get("results") or {}) else "")
            if stage.outcome
            else ""
        )
        self.say(f"{stage.short} done in {duration(stage.wall_s())}{said}")

    # ------------------------------------------------------------------ the table

    def _screen(self) -> Group:
        stages = self._shown()
        room = max(1, self._console.height - ROWS_KEPT_FREE)
        parts: list[Table | Text] = [self._headline()]
        if stages:
            parts.append(_table(stages[:room], self._console.width))
        if len(stages) > room:
            parts.append(Text(f"and {len(stages) - room} more", style="dim"))
        return Group(*parts)

    def _shown(self) -> list[StageView]:
        return self._view.in_state("running", "evaluating", "starting")

    def _headline(self) -> Text:
        counts = self._view.counts()
        under_way = counts["running"] + counts["evaluating"] + counts["starting"]
        shown = {"done": counts["done"], "running": under_way, "waiting": counts["waiting"] + counts["queued"]}
        shown |= {s: counts[s] for s in ("interrupted", "paused", "failed", "blocked", "cancelled") if counts[s]}
        left = self._view.seconds_left()
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(self._view.name, style="bold")
        for i, (state, count) in enumerate(shown.items()):
            text.append("  " if i == 0 else " · ").append(f"{state} {count}", style=STYLE.get(state, ""))
        text.append(f"  {duration(time.time() - self._begun)}", style="dim")
        if left is not None:
            text.append(f", {_ready(left)}", style="dim")
        return text


def _ready(seconds: float) -> str:
    return f"about {duration(seconds)} left" if seconds < 3600 else f"ready ~{clock(time.time() + seconds)}"


def _table(stages: list[StageView], width: int) -> Table:
    """One row a stage; a narrow terminal shows fewer columns rather than broken ones."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True, overflow="ellipsis", min_width=8)
    columns = ["steps", "val top-1", "left", "loss", "bar", "img/s", "epoch"]  # the most wanted first
    needs = {"steps": 16, "val top-1": 11, "left": 9, "loss": 8, "bar": BAR + 2, "img/s": 8, "epoch": 8}
    free = width - max(len(stage.short) for stage in stages) - 2
    chosen = []
    for column in columns:
        free -= needs[column]
        if free < 0:
            break
        chosen.append(column)
    order = [c for c in ("bar", "steps", "epoch", "loss", "val top-1", "img/s", "left") if c in chosen]
    for column in order:
        table.add_column(
            "" if column == "bar" else column, no_wrap=True, justify="left" if column == "bar" else "right"
        )
    for stage in stages:
        cells = _cells(stage)
        table.add_row(Text(stage.short), *(cells[column] for column in order))
    return table


def _cells(stage: StageView) -> dict[str, ProgressBar | str]:
    evaluates, left = stage.status == "evaluating", stage.seconds_left()
    return {
        "bar": ProgressBar(total=stage.steps or None, completed=stage.step, width=BAR, pulse=not stage.steps),
        "steps": f"{stage.step:,}/{stage.steps:,}{stage.unit}",
        "epoch": figure(stage.state.get("epoch"), ".2f") if "epoch" in stage.state else "",
        "loss": figure(stage.metric("train/loss"), ".4f"),
        "val top-1": stage.validated,
        "img/s": figure(stage.metric("train/images_per_s"), ",.0f"),
        "left": "evaluating" if evaluates else "" if left is None else duration(left),
    }


def _line(stage: StageView) -> str:
    """The same for a log."""
    cells = _cells(stage)
    counted = str(cells["steps"])
    parts = [stage.short, "" if stage.status == "running" else stage.status]
    parts.append(counted if stage.unit else f"step {counted}")
    parts += [f"{column} {cells[column]}" for column in ("epoch", "loss", "val top-1") if cells[column]]
    left = stage.seconds_left()
    parts += [f"{cells['img/s']} img/s" if cells["img/s"] else "", "" if left is None else f"{duration(left)} left"]
    return "  ".join(part for part in parts if part)
