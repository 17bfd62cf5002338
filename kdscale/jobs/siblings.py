"""Stages far slower than the others that train the same, and why, as far as that can be known from here."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from kdscale.jobs.findings import Finding, alike
from kdscale.jobs.overview import StageView, SweepView

__all__ = ["slow"]

SLOW = 0.6
"""A stage below this share of its siblings' pace is pointed out."""
SIBLINGS = 3
"""Fewer have no middle to be far from."""
MORE_SHARE = 0.15
"""A part of a step is a reason for slowness when it takes so much more of it than with the siblings."""
_PARTS = {"data": "waits for data", "teacher": "its teachers take"}


def slow(view: SweepView) -> Iterator[Finding]:
    """Stages far below the pace of those of the same name and network in other trials, the slowest first."""
    running = [stage for stage in view.in_state("running") if stage.metric("train/images_per_s")]
    found: list[tuple[float, StageView, list[StageView]]] = []
    for group in alike(running, lambda s: (s.entry["name"], s.entry.get("model", ""))).values():
        if len(group) < SIBLINGS:
            continue
        usual = statistics.median(_pace(stage) for stage in group)
        below = (stage for stage in group if _pace(stage) < SLOW * usual)
        found += [(_pace(stage) / usual, stage, [s for s in group if s is not stage]) for stage in below]
    for share, stage, others in sorted(found, key=lambda one: one[0]):
        why = "; ".join(_why(view, stage, others)) or "nothing logged tells why"
        words = f"on {host(stage)}: {share:.2f} x the speed of its siblings ({why})"
        yield Finding("slow", [stage], words, f"python launch/logs.py {shlex.quote(stage.name)} --stacks")


def host(stage: StageView) -> str:
    """Where its rank 0 runs."""
    return str((stage.holder or {}).get("host", ""))


def _pace(stage: StageView) -> float:
    return stage.metric("train/images_per_s") or 0.0


def _why(view: SweepView, stage: StageView, others: Sequence[StageView]) -> Iterator[str]:
    """What differs from the siblings: where a step's time goes, what it runs on, who else runs there."""
    yield from _parts(stage, others)
    for entry, words in (("device", "runs on {0}, most siblings on {1}"), ("world", "has {0} processes, not {1}")):
        own, usual = stage.attempt.get(entry), _usual(others, entry)
        if own is not None and usual is not None and own != usual:
            yield words.format(own, usual)
    yield from _neighbours(view, stage, others)
    attempts = len(stage.state.get("attempts", []))
    if attempts > 1:
        yield f"attempt {attempts}"


def _parts(stage: StageView, others: Sequence[StageView]) -> Iterator[str]:
    for part, words in _PARTS.items():
        share, usual = _share(stage, part), [s for s in (_share(other, part) for other in others) if s is not None]
        if share is None:
            continue
        middle = statistics.median(usual) if usual else 0.0
        if share - middle >= MORE_SHARE or (part == "data" and share > 0.5):
            yield f"{words} {share:.0%} of a step, siblings {middle:.0%}"


def _share(stage: StageView, part: str) -> float | None:
    """How much of a step a part of it takes."""
    spent, step = stage.metric(f"time/{part}_s"), stage.metric("time/step_s")
    return min(1.0, spent / step) if spent is not None and step else None


def _usual(others: Sequence[StageView], entry: str) -> object:
    known = [stage.attempt.get(entry) for stage in others]
    return statistics.mode(known) if known else None


def _neighbours(view: SweepView, stage: StageView, others: Sequence[StageView]) -> Iterator[str]:
    """Whether its node is fuller than theirs, and whether siblings there are slow as well."""
    nodes = Counter(host(s) for s in view.in_state("running", "evaluating"))
    here = [s for s in others if host(s) == host(stage)]
    elsewhere = [s for s in others if host(s) != host(stage)]
    usual = statistics.median(_pace(s) for s in others)
    if here and elsewhere and all(_pace(s) < SLOW * usual for s in here):
        yield f"so {'is' if len(here) == 1 else 'are'} the {len(here)} other on this node: it is the node"
    elif elsewhere and nodes[host(stage)] > statistics.median(nodes[host(s)] for s in elsewhere):
        with_it = nodes[host(stage)] - 1
        yield f"shares the node with {with_it} other stage{'s' * (with_it > 1)}"
