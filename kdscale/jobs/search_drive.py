"""Run a search to its end on whatever runs stages, and say on the terminal what it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kdscale import atomic
from kdscale.config.search import SearchConfig
from kdscale.jobs.search import Search
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan, PlannedStage
from kdscale.report.search import DOCUMENT, best_of, progress, short_keys, written

__all__ = ["Drive", "InlineRunner", "Runner", "expected", "outcome", "preview_lines"]

LOOK_S = 0.5
"""Seconds between two looks at what trials have come to."""


@runtime_checkable
class Runner(Protocol):
    """Runs the stages of a plan that grows."""

    @property
    def stopped(self) -> bool:
        """Whether the user asked for the end."""

    def run(self, on_tick: Callable[[], None]) -> dict[str, str]:
        """Run to the end; returns each stage's final state by digest."""

    def extend(self, plan: Plan, fresh: Collection[str]) -> None:
        """Go on with a plan that has grown by the stages `fresh`."""


class InlineRunner:
    """One stage after the other in this process; nobody could stop one early.

    Args:
        root: of the runs.
        plan: with its folders prepared.
        say: prints one line.
    """

    def __init__(self, root: Root, plan: Plan, say: Callable[[str], None]) -> None:
        self._root, self._plan, self._say = root, plan, say
        self.stopped = False

    def run(self, on_tick: Callable[[], None]) -> dict[str, str]:
        """Run all that is planned by now; nothing can be looked at meanwhile."""
        del on_tick
        from kdscale.jobs.inline import run_inline

        states = run_inline(self._root, self._plan, self._say)
        self.stopped = "interrupted" in states.values()
        return states

    def extend(self, plan: Plan, fresh: Collection[str]) -> None:
        """Run this at the next call."""
        del fresh
        self._plan = plan


@dataclass
class Drive:
    """Has a search run to its end.

    Args:
        search: begun.
        runner: of its stages.
        update: called often.
        grown: called when the plan has grown.
        halt: asks the runner to stop.
    """

    search: Search
    runner: Runner
    update: Callable[[], None]
    grown: Callable[[], None]
    halt: Callable[[], None]
    _looked: float = -LOOK_S

    def run(self) -> dict[str, str]:
        """Run until nothing is left to run or to ask for; returns states by digest.

        Raises:
            ConfigError: no trial has the figure that is searched by.
        """
        while True:
            states = self.runner.run(self._tick)
            if self.runner.stopped or not self._grow():
                if self.search.problem is not None:
                    raise self.search.problem
                return states

    def _tick(self) -> None:
        if not self.runner.stopped and time.monotonic() - self._looked >= LOOK_S:
            self._grow()
            self._looked = time.monotonic()
            if self.search.problem is not None:
                self.halt()
        self.update()

    def _grow(self) -> bool:
        fresh = self.search.go_on()
        if fresh is not None:
            self.runner.extend(self.search.running, fresh)
            self.grown()
        return fresh is not None


def preview_lines(search: Search) -> Iterator[str]:
    """What a dry run says of a search, besides the plan of its next trials."""
    settings = search.settings
    yield (
        f"search: {settings.trials} trials by {settings.metric} of {search.metric.stage} ({search.metric.direction}), "
        f"{settings.parallel} at a time; {_sampled(settings)}; {_pruned(settings)}"
    )
    keys = short_keys(settings.space)
    yield from (f"  {key}: {dimension}" for key, dimension in settings.dimensions.items())
    for trial in search.trials[-max(1, len(search.open_trials)) :]:
        yield f"  {trial.label}: {', '.join(f'{keys[key]}={written(value)}' for key, value in trial.values.items())}"
    per_trial, shared = _flops(search)
    yield (
        f"  cost: {settings.trials} x {per_trial / 1e12:,.1f} TFLOPs at most (the widest corner of the space), "
        f"and {shared / 1e12:,.1f} once for what they share"
    )


def outcome(search: Search) -> str:
    """What a search has come to, in one line."""
    document = atomic.read_json(search.folder / DOCUMENT)
    best, keys = best_of(document), short_keys(document["space"])
    if best is None:
        return progress(document)
    values = ", ".join(f"{keys[key]}={written(value)}" for key, value in best["values"].items())
    return f"{progress(document)}; best {best['trial']}, {document['metric']} {best['value']:.4g}: {values}"


def expected(search: Search) -> tuple[int, float]:
    """How many stages are to run at most, and how many bytes they write, if no trial is stopped early."""
    left = search.settings.trials - len([trial for trial in search.trials if trial.state != "open"])
    shared = [s for d in search.plan.shared if not (s := search.plan.corners.stages[d]).reuse.done]
    per_trial = [(len(own), sum(float(stage.cost.bytes) for stage in own)) for own in _corners(search)]
    jobs, size = max(jobs for jobs, _ in per_trial), max(size for _, size in per_trial)
    return left * jobs + len(shared), left * size + sum(stage.cost.bytes for stage in shared)


def _corners(search: Search) -> Iterator[list[PlannedStage]]:
    """Of each corner of the space the stages that are its own."""
    corners = search.plan.corners
    for label in dict.fromkeys(trial.axes["trial"] for trial in corners.trials):
        part = corners.part(trial for trial in corners.trials if trial.axes["trial"] == label)
        yield [stage for digest, stage in part.stages.items() if digest not in search.plan.shared]


def _flops(search: Search) -> tuple[float, float]:
    """Of one suggestion at most, and of what all share."""
    stages, shared = search.plan.corners.stages, search.plan.shared
    widest = max(sum(float(stage.cost.train_flops) for stage in own) for own in _corners(search))
    return widest, float(sum(stages[digest].cost.train_flops for digest in shared))


def _sampled(settings: SearchConfig) -> str:
    sampler = settings.sampler
    drawn = "drawn at random" if sampler.name == "random" else f"TPE after {sampler.startup} at random"
    return f"{drawn}, seed {sampler.seed}"


def _pruned(settings: SearchConfig) -> str:
    rule = settings.prune
    if rule is None:
        return "none is stopped early"
    than = "the median" if rule.percentile == 50 else f"the best {rule.percentile:g} in a hundred"
    after = f"{rule.after_epochs} epochs" if rule.after_epochs else "a quarter of its epochs"
    return f"stopped early where behind {than} of {rule.after_trials} finished ones or more, after {after}"
