"""What there is to say of a sweep besides its numbers: what went wrong and why, who waits for whom, what is slow."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kdscale.jobs.overview import StageView, SweepView
from kdscale.jobs.slurm.look import job_ranges
from kdscale.jobs.wording import clock, duration

__all__ = ["Finding", "again", "alike", "quiet", "troubles", "waiting"]

QUIET_S = 600.0
"""A stage that runs and has written nothing for so long deserves a look."""
COMING_BACK = ("queued", "starting")
TROUBLES = ("failed", "paused", "lost", "cancelled", "blocked", "interrupted")
PARENTS_SHOWN = 3
FORESEEN_S = 30 * 86400.0
"""Of a start further away SLURM knows only that it comes after jobs without a limit, which it takes to last a year."""

NOT_FINITE = re.compile(r"became nan or inf|not finite")
"""In the cause of a failure whose step can be replayed."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    """One thing to say of one or many stages that are alike in it."""

    kind: str
    """A state, or `slow`, `quiet`."""
    stages: Sequence[StageView]
    """The first is the example."""
    words: str
    hint: str = ""
    """A command to type."""

    @property
    def who(self) -> str:
        """The stage, or how many of which name."""
        one = self.stages[0]
        return one.name if len(self.stages) == 1 else f"{len(self.stages)} x {one.entry['name']}"


def alike(stages: Iterable[StageView], key: Callable[[StageView], Key]) -> dict[Key, list[StageView]]:
    """Stages by what they have in common, in the order in which it first occurs."""
    groups: dict[Key, list[StageView]] = {}
    for stage in stages:
        groups.setdefault(key(stage), []).append(stage)
    return groups


# --------------------------------------------------------------------------- what went wrong


def troubles(view: SweepView, *, each: bool = False) -> list[Finding]:
    """What a person has to look at, equal causes together, the commonest first.

    Args:
        view: the sweep.
        each: every stage by itself.
    """
    found: list[Finding] = []
    for status in TROUBLES:
        groups = alike(view.in_state(status), lambda s: (s.digest if each else s.entry["name"], _kind(_cause(s))))
        commonest = sorted(groups.values(), key=len, reverse=True)
        found += [Finding(status, stages, _cause(stages[0]), _hint(status, stages[0])) for stages in commonest]
    return found


def _kind(cause: str) -> str:
    """A cause without what differs from one stage to the next: steps, ranks, values, digests, nodes' numbers."""
    return re.sub(r"\b[0-9a-f]{6,}\b|\d[\d,.]*(e[+-]?\d+)?", "#", cause)


def _cause(stage: StageView) -> str:
    if stage.status == "lost":
        return _lost(stage)
    lines = str(stage.state.get("reason") or "").strip().splitlines() or [""]
    at = f" (step {stage.step:,} of {stage.steps:,})" if stage.status == "interrupted" and stage.steps else ""
    return lines[0] + at


def _lost(stage: StageView) -> str:
    at = f", at step {stage.step:,} of {stage.steps:,}"
    if stage.job is not None:
        return f"job {stage.job.id} is {stage.job.state} on {stage.job.nodes}, but shows no sign of life{at}"
    if stage.gone and stage.state["state"] == "queued":
        return f"job {stage.gone} is gone from the queue and its ranks wrote nothing"
    last = stage.folder.last_claim() if stage.folder else None
    who = f"process {last['pid']} on {last['host']}" if last else "its process"
    return f"{who} is gone{f', and so is job {stage.gone}' if stage.gone else ''}{at}"


def _hint(status: str, stage: StageView) -> str:
    name = shlex.quote(stage.name)
    if status == "paused" and any(
        word in str(stage.state.get("reason", "")).lower() for word in ("space", "quota", "disk")
    ):
        return "python launch/runs.py du   and gc, which frees what nobody needs"
    if status == "failed" and NOT_FINITE.search(str(stage.state.get("reason", ""))):
        return f"python launch/replay.py {name}"
    if status == "lost" and stage.job is not None:
        return f"python launch/logs.py {name} --stacks"
    return f"python launch/logs.py {name}" if status in ("failed", "paused") or stage.gone else ""


def again(view: SweepView) -> str:
    """How often stages had to start again, and on which nodes they were lost; empty when none had to."""
    outcomes: Counter[str] = Counter()
    hosts: Counter[str] = Counter()
    for stage in view.stages.values():
        attempts = stage.state.get("attempts", [])
        for attempt in attempts if stage.status in COMING_BACK else attempts[:-1]:
            outcomes.update([attempt["outcome"]] if attempt.get("outcome") else [])
            hosts.update([str(attempt["host"])] if attempt.get("outcome") == "lost" and attempt.get("host") else [])
    where = ", ".join(f"{host} {count} x" for host, count in hosts.most_common(PARENTS_SHOWN))
    told = [f"{outcome} {count} x" for outcome, count in outcomes.most_common()]
    return " · ".join(f"{one} ({where})" if one.startswith("lost") and where else one for one in told)


def quiet(view: SweepView) -> Iterator[Finding]:
    """Stages that run by all signs but have written nothing for long."""
    for stage in view.in_state("running", "evaluating"):
        seen = max(float(stage.state.get("updated", 0.0)), stage.tail.written if stage.tail else 0.0)
        if time.time() - seen > QUIET_S:
            hint = f"python launch/logs.py {shlex.quote(stage.name)} --stacks"
            yield Finding("quiet", [stage], f"wrote nothing for {duration(time.time() - seen)}", hint)


# --------------------------------------------------------------------------- who waits for whom


def waiting(view: SweepView, *, each: bool = False) -> list[Finding]:
    """Stages that wait, those together that wait for the same; `each` by itself."""

    def key(stage: StageView) -> tuple[str, str, str, tuple[str, ...]]:
        parents = tuple(sorted({parent.entry["name"] for parent in view.waits_for(stage)}))
        return stage.digest if each else stage.entry["name"], stage.status, _pending(view, stage), parents

    groups = alike(view.in_state("waiting", "queued"), key)
    return [Finding(stages[0].status, stages, _waits(view, stages)) for stages in groups.values()]


def _pending(view: SweepView, stage: StageView) -> str:
    """What the scheduler says; nothing where it only waits for its parents, which is better said by their names."""
    if view.queue is None or stage.job is None:
        return ""
    return "" if stage.job.reason == "Dependency" and view.waits_for(stage) else view.queue.waits_for(stage.job)


def _waits(view: SweepView, stages: Sequence[StageView]) -> str:
    parents = {parent.digest: parent for stage in stages for parent in view.waits_for(stage)}
    whom = ", ".join(_parents(list(parents.values())))
    words = f"for {_pending(view, stages[0]) or whom or _nobody(view, stages[0])}"
    ids = view.queue.jobs if view.queue is not None else {}
    jobs = [ids[stage.digest] for stage in stages if stage.status == "queued" and stage.digest in ids]
    if not jobs:
        return words
    return f"{words}   job{'s' * (len(jobs) > 1)} {job_ranges(jobs)}{_first(stages)}{_halfway(stages)}"


def _nobody(view: SweepView, stage: StageView) -> str:
    if stage.status == "queued" and view.queue is not None and view.queue.problem:
        return "its turn, or what the scheduler would say"
    return "a launcher" if view.over else "a free place"


def _first(stages: Sequence[StageView]) -> str:
    """When the scheduler expects to start them."""
    now = time.time()
    known = [stage.job.starts for stage in stages if stage.job is not None and stage.job.starts]
    soonest = min((start for start in known if now < start < now + FORESEEN_S), default=None)
    if soonest is None:
        return ""
    return f", {'the first ' if len(stages) > 1 else ''}from about {clock(soonest)}"


def _halfway(stages: Sequence[StageView]) -> str:
    """Where jobs that were put back will go on."""
    begun = [stage for stage in stages if stage.step]
    if not begun:
        return ""
    if len(stages) == 1:
        return f", goes on from step {begun[0].step:,} of {begun[0].steps:,}"
    return f", {len(begun)} of them go on from where they were"


def _parents(parents: Sequence[StageView]) -> Iterator[str]:
    """Those waited for; many of one name are counted."""
    for name, group in alike(parents, lambda stage: str(stage.entry["name"])).items():
        if len(group) <= PARENTS_SHOWN:
            yield from map(_progress, group)
            continue
        counts = Counter(stage.status for stage in group)
        yield f"{len(group)} x {name} ({', '.join(f'{count} {state}' for state, count in counts.most_common())})"


def _progress(stage: StageView) -> str:
    left = stage.seconds_left()
    told = f", about {duration(left)} left" if left is not None else ""
    share = f" {stage.step / stage.steps:.0%}" if stage.status == "running" and stage.steps else ""
    return f"{stage.short} ({stage.status}{share}{told})"
