"""One screen on how a sweep is: causes before numbers, and what to type next."""

from __future__ import annotations

import shlex
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdscale.jobs.overview import ORDER, STYLE, StageView, SweepView
from kdscale.jobs.wording import clock, duration, figure

__all__ = ["screen"]

LABEL = 14
QUIET_S = 600.0
"""A stage that runs and has written nothing for so long deserves a look."""
SLOW = 0.6
"""A stage below this share of its siblings' pace is pointed out."""
LISTED = 8
NEEDS_A_COMMAND = ("failed", "lost", "interrupted", "waiting", "paused", "cancelled")


def screen(view: SweepView, width: int = 100) -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [_headline(view)]
    parts += _troubles(view)
    parts += [line for line in (_again(view), *_quiet(view), *_slow(view)) if line]
    running = view.in_state("running", "evaluating", "starting")
    if running:
        parts.append(_running(running, width))
    parts += _waiting(view)
    parts += _done(view)
    parts += _next_command(view)
    return Group(*parts)


def _headline(view: SweepView) -> Text:
    counts, trials = view.counts(), len(view.plan["trials"])
    text = Text()
    text.append(view.name, style="bold").append(f"  {trials} trial{'s' * (trials != 1)}   ")
    shown = [(state, counts[state]) for state in reversed(ORDER) if counts[state]]
    for i, (state, count) in enumerate(shown):
        text.append(" · " if i else "").append(f"{state} {count}", style=STYLE.get(state, ""))
    facts = [f"planned {clock(view.plan['created'])}", *_used(view)]
    left = view.seconds_left()
    if left is not None:
        facts.append(f"about {duration(left)} left" if left < 3600 else f"ready ~{clock(time.time() + left)}")
    return text.append("   " + " · ".join(facts), style="dim")


def _used(view: SweepView) -> list[str]:
    return [
        f"{h:.1f} {unit} used" if h >= 1 else f"{h * 60:.0f} {unit[:-1]}min used" for unit, h in view.hours().items()
    ]


def _line(label: str, content: str, hint: str = "", style: str = "") -> Text:
    text = Text(f" {label:<{LABEL - 1}}", style=style or STYLE.get(label, ""))
    text.append(content, style="default")
    if hint:
        text.append(f"\n{' ' * LABEL}→ {hint}", style="dim")
    return text


def _troubles(view: SweepView) -> Iterator[Text]:
    """What a person has to look at, equal causes together."""
    for status in ("failed", "paused", "lost", "cancelled", "blocked", "interrupted"):
        alike: dict[tuple[str, str], list[StageView]] = {}
        for stage in view.in_state(status):
            alike.setdefault((stage.entry["name"], _reason(stage)), []).append(stage)
        for (name, reason), stages in alike.items():
            who = stages[0].name if len(stages) == 1 else f"{len(stages)} x {name}"
            yield _line(status, f"{who}  {reason}".rstrip(), _hint(status, stages[0]))


def _reason(stage: StageView) -> str:
    if stage.status == "lost":
        last = stage.folder.last_claim() if stage.folder else None
        who = f"process {last['pid']} on {last['host']}" if last else "its process"
        return f"{who} is gone, at step {stage.step:,} of {stage.steps:,}"
    lines = str(stage.state.get("reason") or "").strip().splitlines() or [""]
    at = f" (step {stage.step:,} of {stage.steps:,})" if stage.status == "interrupted" and stage.steps else ""
    return lines[0] + at


def _hint(status: str, stage: StageView) -> str:
    name = shlex.quote(stage.name)
    if status == "failed":
        return f"python launch/logs.py {name}"
    if status == "paused":
        full = any(word in str(stage.state.get("reason", "")).lower() for word in ("space", "quota", "disk"))
        return (
            "python launch/runs.py du   and gc, which frees what nobody needs"
            if full
            else f"python launch/logs.py {name}"
        )
    return ""


def _again(view: SweepView) -> Text | None:
    """How often stages had to start again, and what that cost."""
    outcomes: Counter[str] = Counter()
    for stage in view.stages.values():
        outcomes.update(a["outcome"] for a in stage.state.get("attempts", [])[:-1] if a.get("outcome"))
    if not outcomes:
        return None
    return _line("again", " · ".join(f"{outcome} {count} x" for outcome, count in outcomes.most_common()), style="dim")


def _quiet(view: SweepView) -> Iterator[Text]:
    for stage in view.in_state("running", "evaluating"):
        seen = max(float(stage.state.get("updated", 0.0)), stage.tail.written if stage.tail else 0.0)
        if time.time() - seen > QUIET_S:
            hint = f"python launch/logs.py {shlex.quote(stage.name)} --stacks"
            yield _line("quiet", f"{stage.name}  wrote nothing for {duration(time.time() - seen)}", hint, "yellow")


def _slow(view: SweepView) -> Iterator[Text]:
    """Stages far below the pace of those that train the same network."""
    alike: dict[tuple[str, str], list[tuple[float, StageView]]] = {}
    for stage in view.in_state("running"):
        pace = stage.metric("train/images_per_s")
        if pace:
            alike.setdefault((stage.entry["name"], stage.entry.get("model", "")), []).append((pace, stage))
    for siblings in (group for group in alike.values() if len(group) > 2):
        usual = statistics.median(pace for pace, _ in siblings)
        for pace, stage in siblings:
            if pace < SLOW * usual:
                wait, step = stage.metric("time/data_s"), stage.metric("time/step_s")
                waits = f" (data wait {wait / step:.0%})" if wait and step else ""
                host = (stage.holder or {}).get("host", "")
                said = f"{stage.name} on {host}: {pace / usual:.2f} x the speed of its siblings{waits}"
                yield _line("slow", said, style="yellow")


def _running(stages: Sequence[StageView], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    narrow = width < max(len(stage.name) for stage in stages) + 78
    titles = ["running", "step", "", "loss", "val top-1", "left"] + ([] if narrow else ["epoch", "img/s", "host"])
    for i, title in enumerate(titles):
        table.add_column(f" {title}" if i == 0 else title, no_wrap=True, justify="left" if i == 0 else "right")
    for stage in stages:
        left, steps = stage.seconds_left(), stage.steps
        cells = [
            f"{stage.step:,}/{steps:,}" if steps else "", f"{stage.step / steps:.0%}" if steps else "",
            figure(stage.metric("train/loss")), figure(stage.metric("val/top1")),
            stage.status if stage.status != "running" else "" if left is None else duration(left),
            figure(stage.state.get("epoch"), ".2f"), figure(stage.metric("train/images_per_s"), ",.0f"),
            str((stage.holder or {}).get("host", "")),
        ]  # fmt: skip
        table.add_row(Text(f" {stage.name}", style="cyan"), *cells[: len(titles) - 1])
    return table


def _waiting(view: SweepView) -> Iterator[Text]:
    """Who waits for whom."""
    alike: dict[tuple[str, tuple[str, ...]], list[StageView]] = {}
    for stage in view.in_state("waiting", "queued"):
        key = tuple(parent.digest for parent in view.waits_for(stage))
        alike.setdefault((stage.entry["name"], key), []).append(stage)
    for (name, parents), stages in alike.items():
        who = stages[0].name if len(stages) == 1 else f"{len(stages)} x {name}"
        whom = ", ".join(_progress(view.stages[digest]) for digest in parents)
        yield _line(stages[0].status, f"{who}  for {whom or 'a free place' if not view.over else whom or 'a launcher'}")


def _progress(stage: StageView) -> str:
    left = stage.seconds_left()
    told = f", about {duration(left)} left" if left is not None else ""
    share = f" {stage.step / stage.steps:.0%}" if stage.status == "running" and stage.steps else ""
    return f"{stage.short} ({stage.status}{share}{told})"


def _done(view: SweepView) -> Iterator[Text]:
    """What finished last, with its figures."""
    done = sorted(view.in_state("done"), key=lambda s: s.attempt.get("ended") or 0.0, reverse=True)
    for stage in done[:LISTED]:
        figures = f"  top-1 {stage.top1:.4f}" if stage.top1 is not None else ""
        how = "reused" if stage.entry.get("reused") else f"in {duration(stage.wall_s())}"
        yield _line("done", f"{stage.name}{figures}  {how}")
    if len(done) > LISTED:
        best = f"python launch/report.py {shlex.quote(view.name)}"
        yield _line("", f"and {len(done) - LISTED} more; all figures: {best}", style="dim")


def _next_command(view: SweepView) -> Iterator[Text]:
    """The command that goes on, when nothing moves and something is left to do."""
    counts = view.counts()
    if view.over and any(counts[state] for state in NEEDS_A_COMMAND):
        again = "   (with --retry-failed to try failed stages again)" if counts["failed"] else ""
        yield _line("go on", f"{view.plan['command']}{again}", style="bold")
