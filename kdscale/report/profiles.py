"""Where the time of a step goes: the profiles that stages' ranks left, as tables and as bars."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.report.grid import Cell, Column, Grid
from kdscale.report.records import SweepRecord
from kdscale.report.svg import STYLE, inline, series
from kdscale.report.wording import DASH, millis, percent, plural

__all__ = ["BARS", "PHASES", "Profile", "profile_figure", "profile_grid", "profile_of", "profiles_of"]

PHASES = {
    "data": "data wait",
    "teacher": "teacher",
    "student": "student forward",
    "losses": "losses",
    "backward": "backward",
    "all_reduce": "all-reduce",
    "optimizer": "optimizer",
    "tracking": "metrics",
    "checkpoint": "checkpoint",
    "other": "everything else",
}
"""What phases are called, in the order of a step."""
_EXPLAINED = {
    "data": "waiting for a batch, and bringing it to the device",
    "losses": "every term and modifier; with the student's forward where that is compiled",
    "all_reduce": "what of it backward does not hide: from the last gradient on",
    "optimizer": "clipping, update, EMA, learning rate",
    "tracking": "adding up losses, and at its rate the line of metrics",
    "checkpoint": "at its rate",
}
BARS = {
    "data wait": ("data",), "teacher": ("teacher",), "student forward": ("student",), "losses": ("losses",),
    "backward": ("backward",), "all-reduce": ("all_reduce",), "optimizer": ("optimizer",),
    "the rest": ("tracking", "checkpoint", "other"),
}  # fmt: skip
"""What the parts of a bar are called, and the phases of each."""
MOST_STAGES = 6
WIDTH = 760
_NAME = re.compile(r"attempt(\d+)-rank(\d+)\.json")


@dataclass(frozen=True)
class Profile:
    """One stage's steps as all its ranks saw them.

    Attributes:
        stage: its name.
        ranks: what each measured, as its file has it.
        traces: in Chrome's format, by rank.
    """

    stage: str
    ranks: Sequence[dict[str, Any]]
    traces: Sequence[Path]

    @property
    def step_s(self) -> float:
        """Seconds of a step, mean over ranks."""
        return statistics.fmean(rank["step_s"] for rank in self.ranks)

    @property
    def overhead(self) -> float:
        """Share in [0, 1] of what a bare loop over tensors in memory would not do."""
        return statistics.fmean(rank["overhead"] * rank["step_s"] for rank in self.ranks) / self.step_s

    def seconds(self, phase: str) -> tuple[float, float, float] | None:
        """Of a phase: mean, least and most over ranks; None where none has it."""
        found = [rank["phases_s"][phase] for rank in self.ranks if phase in rank["phases_s"]]
        return (sum(found) / len(self.ranks), min(found), max(found)) if found else None

    @property
    def said(self) -> str:
        """What was measured where, in a line."""
        first = self.ranks[0]
        begin, end, world = first["first_step"], first["first_step"] + first["steps"], first["world"]
        lacking = "" if len(self.ranks) == world else f" ({len(self.ranks)} of them here)"
        threads = f", {plural(first['threads'], 'thread')} each" if first["device"] == "CPU" else ""
        return (
            f"{self.stage}: steps {begin:,} to {end:,} of {first['batch_size']} images, {first['precision']}, "
            f"{world} process{'es' * (world > 1)}{lacking} on {first['device']}{threads}; "
            f"median {millis(1000 * first['median_s'])}, longest {millis(1000 * first['longest_s'])}"
        )


def profile_of(stage_folder: Path, name: str) -> Profile | None:
    """The newest attempt's profile; None where a stage has none."""
    files = [(m, path) for path in stage_folder.glob("profile/*.json") if (m := _NAME.fullmatch(path.name))]
    newest = max((int(match[1]) for match, _ in files), default=0)
    mine = sorted((int(match[2]), path) for match, path in files if int(match[1]) == newest)
    ranks = [content for _, path in mine if (content := atomic.read_json(path)) is not None]
    traces = [trace for _, path in mine if (trace := path.with_suffix(".trace.json")).exists()]
    return Profile(name, ranks, traces) if ranks else None


def profiles_of(sweep: SweepRecord) -> list[Profile]:
    """Of a sweep's stages the longest steps first; none where nobody asked for one."""
    folders = [(stage.folder, sweep.name_of(stage)) for stage in sweep.trained if stage.folder is not None]
    found = [profile for folder, name in folders if (profile := profile_of(folder, name)) is not None]
    return sorted(found, key=lambda profile: -profile.step_s)[:MOST_STAGES]


def profile_grid(profiles: Sequence[Profile]) -> Grid:
    """Phases down, stages across; mean milliseconds and share of a step, and the spread over ranks."""
    columns = [Column("a step's", number=False), *(Column(one.stage) for one in profiles)]
    rows = []
    for phase, word in PHASES.items():
        cells = [_cell(one, phase) for one in profiles]
        if any(cell.text != DASH for cell in cells):
            rows.append([Cell(word, title=_EXPLAINED.get(phase, "")), *cells])
    whole = [Cell(millis(1000 * one.step_s), best=True) for one in profiles]
    rows.append([Cell("whole", best=True), *whole])
    beside = [Cell(f"{percent(one.overhead, 1)} %") for one in profiles]
    rows.append([Cell("no mathematics", title="data wait, metrics, checkpoint and everything else"), *beside])
    traces = [f"Trace (ui.perfetto.dev): {path}" for one in profiles for path in one.traces[:1]]
    return Grid("Where a step's time goes, and its share", columns, rows, [*(one.said for one in profiles), *traces])


def profile_figure(profiles: Sequence[Profile]) -> str:
    """A bar for each stage, of the milliseconds of its step."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, (60 + 34 * len(profiles)) / 72), layout="constrained")
        axes = figure.subplots()
        titles = {}
        for row, one in enumerate(reversed(profiles)):
            left = 0.0
            for index, (word, phases) in enumerate(BARS.items()):
                width = 1000 * sum(seconds[0] for phase in phases if (seconds := one.seconds(phase)))
                [bar] = axes.barh(row, width, left=left, height=0.6, color=series(index))
                bar.set_gid(f"step-{row}-{index}")
                titles[f"step-{row}-{index}"] = f"{one.stage}: {word} {millis(width)}"
                left += width
        axes.set_yticks(range(len(profiles)), [one.stage for one in reversed(profiles)])
        axes.set_xlabel("milliseconds of a step")
        axes.grid(visible=False, axis="y")
        return inline(figure, "steps", "what the time of a step is spent on", titles)


def _cell(profile: Profile, phase: str) -> Cell:
    seconds = profile.seconds(phase)
    if seconds is None:
        return Cell(DASH, tone="muted")
    mean, least, most = seconds
    share = f"{percent(mean / profile.step_s, 1)} %"
    spread = f", {1000 * least:.3g} to {1000 * most:.3g}" if len(profile.ranks) > 1 else ""
    return Cell(millis(1000 * mean), f"{share}{spread}")
