"""The plan of a search, which grows by a trial at a time and keeps its folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property

from kdscale.config.load import Sweep, Trial
from kdscale.errors import KDScaleError
from kdscale.jobs.study import Asked
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.machine import Site
from kdscale.pipeline.plan import Planner, make_plan
from kdscale.pipeline.planned import Plan, PlannedTrial, search_digest

__all__ = ["GrowingPlan"]


class GrowingPlan:
    """All trials of a search that were ever asked for, as a plan.

    The corners of the space are planned first, and never run: what a choice or an end of a range makes impossible is
    said before anything starts, and caches are planned for all that may come.

    Args:
        sweep: loaded, with a `search`.
        root: of the runs.
        command: for the record.
        site: where it will run, if not here.
        fetch: whether data that is missing is downloaded.

    Raises:
        KDScaleError: a corner cannot be planned.
    """

    def __init__(self, sweep: Sweep, root: Root, *, command: str, site: Site | None, fetch: bool) -> None:
        assert sweep.search is not None
        self._sweep, self._root, self._command = sweep, root, command
        self._planner = Planner(root, lambda _: None, site, fetch=fetch)
        corners = make_plan(sweep, root, command=command, planner=self._planner)
        self.corners = replace(corners, digest=search_digest(corners, sweep.search.identity))
        self.whole = replace(self.corners, trials=[], stages={})
        self.unfit: dict[int, str] = {}
        """Why a suggestion cannot be, by its number; the corners do not show what two values together make wrong."""
        self._known: dict[int, list[Trial]] = {}

    def grow(self, asked: Sequence[Asked]) -> None:
        """Plan suggestions that are new, and judge all stages again."""
        for one in asked:
            if one.number not in self._known and one.number not in self.unfit:
                self._take(one)
        trials = [trial for one in asked for trial in self._known.get(one.number, ())]
        if trials:
            axes = self._sweep.axes | {"trial": list(dict.fromkeys(trial.axes["trial"] for trial in trials))}
            sweep = replace(self._sweep, trials=trials, axes=axes)
            plan = make_plan(sweep, self._root, command=self._command, planner=self._planner)
            self.whole = replace(plan.part(plan.trials), digest=self.corners.digest)

    def forget(self) -> None:
        """Begin anew: what a look was shown need not be what is asked for."""
        self._known, self.unfit = {}, {}
        self.whole = replace(self.corners, trials=[], stages={})

    def part(self, labels: Collection[str], also: Collection[str] = ()) -> Plan:
        """The plan of the trials with these labels, and of stages besides."""
        return self.whole.part((trial for trial in self.whole.trials if trial.axes["trial"] in labels), also)

    def trials_of(self, label: str) -> list[PlannedTrial]:
        """The trials of one suggestion: one for each seed."""
        return [trial for trial in self.whole.trials if trial.axes["trial"] == label]

    def own(self, label: str) -> list[str]:
        """Stages that come of one suggestion."""
        return [digest for digest in self.part([label]).stages if digest not in self.shared]

    @cached_property
    def shared(self) -> frozenset[str]:
        """Stages that no suggestion changes: the same at all corners, each seed for itself."""
        by_seed: dict[tuple[str, ...], list[set[str]]] = {}
        for trial in self.corners.trials:
            seed = tuple(value for axis, value in trial.axes.items() if axis != "trial")
            by_seed.setdefault(seed, []).append(set(self.corners.part([trial]).stages))
        return frozenset(digest for sets in by_seed.values() for digest in set.intersection(*sets))

    def _take(self, asked: Asked) -> None:
        try:
            trials = self._sweep.suggested({asked.label: asked.values})
            for trial in trials:
                self._planner.trial(trial)
            self._known[asked.number] = trials
        except KDScaleError as error:
            self.unfit[asked.number] = str(error)
