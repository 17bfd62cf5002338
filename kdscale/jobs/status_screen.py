"""One screen on how a sweep is: causes before numbers, and what to type next.

However many stages there are, it stays one screen: what is alike is counted, long lists end in how many more there
are. `each` lists everything instead.
"""

from __future__ import annotations

import re
import shlex
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from kdscale.jobs.findings import Finding, again, alike, quiet, troubles, waiting
from kdscale.jobs.overview import ORDER, STYLE, StageView, SweepView
from kdscale.jobs.running_table import running_table
from kdscale.jobs.siblings import slow
from kdscale.jobs.wording import clock, duration

__all__ = ["next_command", "screen"]

LABEL = 14
MANY = 12
"""More stages of one name than this are counted instead of told apart."""
GROUPS = 4
"""Groups of like causes shown a state."""
FEW, SOME = 3, 8
NEEDS_A_COMMAND = ("failed", "lost", "interrupted", "waiting", "paused", "cancelled")


def screen(view: SweepView, width: int = 100, *, each: bool = False) -> RenderableType:
    """The whole screen.

    Args:
        view: the sweep.
        width: columns of the terminal.
        each: every stage by itself, however many there are.
    """
    lines = _Lines(view, width, each=each)
    parts: list[RenderableType] = [*lines.headline(), *lines.causes()]
    parts += lines.counts()
    running = view.in_state("running", "evaluating", "starting")
    if running:
        parts += running_table(running, width, len(running) if each else SOME)
    parts += lines.waiting()
    parts += lines.done()
    parts += lines.next_command()
    return Group(*parts)


def next_command(view: SweepView) -> str:
    """The command that goes on, when nothing moves and something is left to do; else nothing."""
    counts = view.counts()
    stays = view.over and any(counts[state] for state in NEEDS_A_COMMAND)
    return str(view.plan["command"]) if stays else ""


class _Lines:
    """The lines of one screen."""

    def __init__(self, view: SweepView, width: int, *, each: bool) -> None:
        self._view, self._width, self._each = view, width, each
        self._many = any(len(group) > MANY for group in self._by_name().values())
        self._all = f"python launch/status.py {shlex.quote(view.name)} --all"

    def headline(self) -> Iterator[Text]:
        view, counts, trials = self._view, self._view.counts(), len(self._view.plan["trials"])
        text = Text()
        text.append(view.name, style="bold").append(f"  {trials} trial{'s' * (trials != 1)}   ")
        shown = [(state, counts[state]) for state in reversed(ORDER) if counts[state]]
        for i, (state, count) in enumerate(shown):
            text.append(" · " if i else "").append(f"{state} {count}", style=STYLE.get(state, ""))
        facts = [f"planned {clock(view.plan['created'])}", *_used(view)]
        left = view.seconds_left()
        if left is not None:
            facts.append(_left(view, left))
        told = " · ".join(facts)
        apart = len(text) + 3 + len(told) > self._width
        folded = textwrap.fill(told, max(20, self._width - 2), initial_indent=" ", subsequent_indent=" ")
        yield text.append("\n" + folded if apart else "   " + told, style="dim")
        if view.queue is not None and view.queue.problem:
            said = f"could not be asked (what is shown is what the stages' own files say): {view.queue.problem}"
            yield self._line("queue", said, style="yellow")

    def causes(self) -> Iterator[Text]:
        found = troubles(self._view, each=self._each)
        for status, group in _by_kind(found).items():
            yield from self._findings(group, GROUPS, status)
        told = again(self._view)
        if told:
            yield self._line("again", told, style="dim")
        yield from self._findings(list(quiet(self._view)), FEW, "quiet")
        yield from self._findings(list(slow(self._view)), GROUPS, "slow")

    def counts(self) -> Iterator[Text]:
        """Where there are too many to be told apart: how many of each name are in which state."""
        if not self._many:
            return
        for name, group in self._by_name().items():
            counts = Counter(stage.status for stage in group)
            text = Text(f" {name} x {len(group)}".ljust(LABEL) + "  ", style="bold")
            for i, state in enumerate(state for state in reversed(ORDER) if counts[state]):
                text.append(" · " if i else "", style="default")
                text.append(f"{counts[state]} {state}", style=f"not bold {STYLE.get(state, 'default')}")
            yield text

    def waiting(self) -> Iterator[Text]:
        yield from self._findings(waiting(self._view, each=self._each), SOME, "waiting")

    def done(self) -> Iterator[Text]:
        """What finished last, with its figures."""
        done = sorted(self._view.in_state("done"), key=lambda s: s.attempt.get("ended") or 0.0, reverse=True)
        shown = len(done) if self._each else FEW if self._many else SOME
        for stage in done[:shown]:
            figures = f"  {stage.outcome}" if stage.outcome else ""
            how = "reused" if stage.entry.get("reused") else f"in {duration(stage.wall_s())}"
            yield self._line("done", f"{stage.name}{figures}  {how}")
        if len(done) > shown:
            best = f"python launch/report.py {shlex.quote(self._view.name)}"
            yield self._more(f"and {len(done) - shown} more; all figures: {best}")

    def next_command(self) -> Iterator[Text]:
        command = next_command(self._view)
        if command:
            again = "   (with --retry-failed to try failed stages again)" if self._view.counts()["failed"] else ""
            yield Text(f" {'go on':<{LABEL - 1}}{command}{again}", style="bold")

    # ------------------------------------------------------------------ inner parts

    def _by_name(self) -> dict[str, list[StageView]]:
        return alike(self._view.stages.values(), lambda stage: str(stage.entry["name"]))

    def _findings(self, found: Sequence[Finding], most: int, label: str) -> Iterator[Text]:
        shown = len(found) if self._each else most if len(found) > most + 1 else len(found)
        for one in found[:shown]:
            example = one.stages[0].name
            like = f"   such as {example}" if len(one.stages) > 1 and one.hint and example not in one.hint else ""
            style = "yellow" if one.kind in ("slow", "quiet") else ""
            yield self._line(one.kind, f"{one.who}  {one.words}".rstrip() + like, one.hint, style)
        left = [stage for one in found[shown:] for stage in one.stages]
        if left:
            how = "causes" if label in STYLE else "kinds"
            said = f"{len(left)} more {label}" + (f" of {len(found) - shown} other {how}" if len(left) > 1 else "")
            yield self._more(f"and {said}: {self._all}")

    def _line(self, label: str, content: str, hint: str = "", style: str = "") -> Text:
        text = Text(f" {label:<{LABEL - 1}}", style=style or STYLE.get(label, ""))
        text.append(_folded(content, self._width), style="default")
        if hint:
            text.append(f"\n{' ' * LABEL}→ {hint}", style="dim")
        return text

    def _more(self, content: str) -> Text:
        return Text(f"{' ' * LABEL}{content}", style="dim")


def _by_kind(found: Sequence[Finding]) -> dict[str, list[Finding]]:
    kinds: dict[str, list[Finding]] = {}
    for one in found:
        kinds.setdefault(one.kind, []).append(one)
    return kinds


def _folded(content: str, width: int) -> str:
    """Content that goes on below itself, not below the label; double spaces stay, as they part what belongs apart."""
    room = max(20, width - LABEL)
    if len(content) <= room:
        return content
    kept = re.sub(r"(?<= ) ", "\0", content)
    lines = textwrap.wrap(kept, room, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * LABEL}".join(line.replace("\0", " ").strip() for line in lines)


def _left(view: SweepView, left: float) -> str:
    waits = ", and the wait in the queue" if any(stage.job for stage in view.in_state("queued")) else ""
    return (f"about {duration(left)} left" if left < 3600 else f"ready ~{clock(time.time() + left)}") + waits


def _used(view: SweepView) -> list[str]:
    return [
        f"{h:.1f} {unit} used" if h >= 1 else f"{h * 60:.0f} {unit[:-1]}min used" for unit, h in view.hours().items()
    ]
