"""A search: trials are asked of a study, planned and run like any others, and what they came to is told.

    study.jsonl -> suggestions -> trials -> plan.json -> whoever runs stages -> figures -> study.jsonl

The journal is the truth. A trial whose stages are done has its figure told; one whose own stage failed, or was
cancelled by its user, is told as failed; one that is far behind is told as pruned, and then its stages are cancelled.
What all trials share, such as their teacher, says nothing about a suggestion: where that fails, the search waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import replace

from kdscale import atomic
from kdscale.config.load import Sweep
from kdscale.errors import ConfigError, KDScaleError
from kdscale.jobs.cancel import stop_stages
from kdscale.jobs.prepare import prepare_folders, why_cancelled
from kdscale.jobs.search_figures import metric_of
from kdscale.jobs.search_files import JOURNAL, alone, is_held, let_go
from kdscale.jobs.search_plan import GrowingPlan
from kdscale.jobs.study import Asked, Study, demand_optuna
from kdscale.jobs.sweep_folder import write_plan
from kdscale.pipeline.artifacts import UNDER_WAY, Root
from kdscale.pipeline.machine import Site
from kdscale.pipeline.planned import Plan
from kdscale.report.records import PRUNED
from kdscale.report.search import DOCUMENT

__all__ = ["SHOWN_FIRST", "Search"]

SHOWN_FIRST = 3
"""Suggestions that a dry run plans."""


class Search:
    """One search, its study, and its plan as it grows.

    Args:
        sweep: loaded, with a `search`.
        root: of the runs.
        command: for the record.
        site: where it will run, if not here.
        fetch: whether data that is missing is downloaded.
        profile: whether steps of its stages are measured.

    Raises:
        ConfigError: a figure of test, a stage that there is not, or what a corner of the space makes impossible.
    """

    def __init__(
        self, sweep: Sweep, root: Root, *, command: str = "", site: Site | None = None, fetch: bool = False,
        profile: bool = False,
    ) -> None:  # fmt: skip
        assert sweep.search is not None
        demand_optuna()
        self.settings, self.sweep, self._root, self._profile = sweep.search, sweep, root, profile
        self.plan = GrowingPlan(sweep, root, command=command, site=site, fetch=fetch)
        self.metric = metric_of(sweep, self.plan.corners)
        self.folder = root.path / "sweeps" / self.plan.corners.folder_name
        self.problem: KDScaleError | None = None
        """What ends the search before its time."""
        self._opened = ExitStack()
        self._study = Study(self.settings, self.metric.direction, self.folder / JOURNAL, writes=False)

    # ------------------------------------------------------------------ beginning

    def preview(self) -> Plan:
        """The plan of what runs next, or of all that ran where nothing is left; nothing is written."""
        left = 0 if self.open_trials else self.settings.trials - len(self.trials)
        for _ in range(min(left, max(SHOWN_FIRST, self.settings.parallel))):
            self._study.ask()
        self.plan.grow(self.trials)
        return self.running if self.open_trials else self.plan.whole

    def begin(self, *, resumed: bool) -> Plan:
        """Open the journal, made if need be, and ask where nothing is open; returns the plan of what is to run.

        Args:
            resumed: whether a search that was cancelled goes on.

        Raises:
            StageError: another process is at it.
            ConfigError: nothing that is suggested can be planned.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._opened.enter_context(alone(self.folder))
        if resumed:
            let_go(self.folder)
        self._study = Study(self.settings, self.metric.direction, self.folder / JOURNAL)
        self.plan.forget()
        for trial in self.open_trials:
            self._study.whole(trial.number)
        self._plan_all()
        for trial in self.trials:
            if trial.state in ("pruned", "failed"):  # a kill may have come between the word and the deed
                self._stop(trial, PRUNED if trial.state == "pruned" else f"{trial.label} failed")
        if not self.open_trials and not is_held(self.folder):
            self._ask(frozenset())
        if not self.plan.whole.trials:
            raise ConfigError(
                f"{self.sweep.path}: no suggestion can be run: {next(iter(self.plan.unfit.values()), '')}"
            )
        self.write()
        return self.running

    def end(self) -> None:
        """Let others ask and tell."""
        self._opened.close()

    # ------------------------------------------------------------------ how far it is

    @property
    def trials(self) -> list[Asked]:
        """All that were asked for."""
        return self._study.trials()

    @property
    def open_trials(self) -> list[Asked]:
        """Those of which nothing was told yet."""
        return [trial for trial in self.trials if trial.state == "open"]

    @property
    def finished(self) -> bool:
        """Whether all trials were asked for and told."""
        return len(self.trials) >= self.settings.trials and not self.open_trials

    @property
    def succeeded(self) -> bool:
        """Whether all trials came to something, if only to be stopped early."""
        return self.finished and not any(trial.state == "failed" for trial in self.trials)

    @property
    def running(self) -> Plan:
        """The plan of open trials, and of stages that still have to stop."""
        closed = [digest for t in self.trials if t.state in ("pruned", "failed") for digest in self.plan.own(t.label)]
        return self.plan.part(self._open_labels, [digest for digest in closed if self._state(digest) in UNDER_WAY])

    @property
    def _open_labels(self) -> set[str]:
        return {trial.label for trial in self.open_trials}

    # ------------------------------------------------------------------ going on

    def go_on(self) -> list[str] | None:
        """Tell what has ended, stop what is far behind, ask for more.

        Returns:
            The stages that came with new trials; None where there is no new trial.
        """
        if is_held(self.folder) or self.problem is not None:
            return None
        before = self.plan.part(self._open_labels).stages.keys()
        try:
            told = [trial for trial in self.open_trials if self._look_at(trial)]
        except KDScaleError as error:
            self.problem = error
            return None
        closed = {digest for trial in told for digest in self.plan.own(trial.label)}
        fresh = self._ask(before - closed)
        if told or fresh is not None:
            self.write()
        return fresh

    def _look_at(self, trial: Asked) -> bool:
        """Tell what an open trial has come to; returns whether there was anything to tell."""
        stages = {digest for planned in self.plan.trials_of(trial.label) for digest in planned.stages.values()}
        ended = [digest for digest in self.plan.own(trial.label) if self._state(digest) in ("failed", "cancelled")]
        if all(self._state(digest) == "done" for digest in stages):
            self._tell_figure(trial)
            return True
        if ended and not is_held(self.folder):  # the hold comes before the wishes of a sweep that is cancelled
            self._study.fail(trial.number, self._why(ended[0]))
            self._stop(trial, f"{trial.label} failed")
            return True
        return not ended and self._prune(trial)

    def _tell_figure(self, trial: Asked) -> None:
        value = self.metric.value(self.folder, self._metric_stages(trial))
        if math.isfinite(value):
            self._study.complete(trial.number, value)
        else:
            self._study.fail(trial.number, f"{self.settings.metric} is {value}")

    def _prune(self, trial: Asked) -> bool:
        """Report new epochs; stop the trial where it is far behind and has some way to go."""
        rule, stages = self.settings.prune, self._metric_stages(trial)
        if rule is None:
            return False
        folders = [folder for digest in stages if (folder := self._root.stage(digest)) is not None]
        epochs = self.metric.epochs(folders, len(stages))
        if not epochs.keys() - trial.epochs.keys():
            return False
        self._study.report(trial.number, epochs)
        now, whole = max(epochs), min(self._epochs_of(digest) for digest in stages)
        if not (rule.after_epochs or max(1, whole // 4)) <= now < whole or not self._study.behind(trial.number):
            return False
        self._study.prune(trial.number)
        self._stop(trial, f"{PRUNED} at epoch {now}")
        return True

    def _stop(self, trial: Asked, reason: str) -> None:
        """Cancel what came of a suggestion and no open trial needs."""
        needed = self.plan.part(self._open_labels).stages
        stop_stages(self._root, [digest for digest in self.plan.own(trial.label) if digest not in needed], reason)

    def _why(self, digest: str) -> str:
        folder = self._root.stage(digest)
        assert folder is not None
        state = folder.state()
        return f"{self.plan.whole.stages[digest].name} {state['state']}: {state['reason'] or why_cancelled(folder)}"

    # ------------------------------------------------------------------ asking

    def _ask(self, under_way: Set[str]) -> list[str] | None:
        """Ask for as many trials as may be; returns what there is to run besides, None where there is no new trial."""
        asked = False
        while len(self._open_labels) < self.settings.parallel and len(self.trials) < self.settings.trials:
            self._study.ask()
            self._plan_all()
            asked = True
        if not asked:
            return None
        plan = self.plan.part(self._open_labels)
        fresh = {d: stage for d, stage in plan.stages.items() if d not in under_way and not stage.reuse.done}
        prepare_folders(self._root, replace(plan, stages=fresh), retry_failed=False, profile=self._profile)
        write_plan(self.folder, self.plan.whole, self.sweep)
        return list(fresh)

    def _plan_all(self) -> None:
        """Plan what is new; a suggestion that cannot be has failed."""
        self.plan.grow(self.trials)
        for trial in self.open_trials:
            if trial.number in self.plan.unfit:
                self._study.fail(trial.number, self.plan.unfit[trial.number])

    # ------------------------------------------------------------------ stages

    def _metric_stages(self, trial: Asked) -> Sequence[str]:
        return [planned.stages[self.metric.stage] for planned in self.plan.trials_of(trial.label)]

    def _epochs_of(self, digest: str) -> int:
        return int(self.plan.whole.stages[digest].definition["spec"]["train"]["epochs"])

    def _state(self, digest: str) -> str:
        folder = self._root.stage(digest)
        return str(folder.state()["state"]) if folder is not None else "waiting"

    # ------------------------------------------------------------------ for the record

    def write(self) -> None:
        """Write search.json, from which the report is made."""
        settings = self.settings
        asked = [
            {
                "trial": trial.label, "state": trial.state, "values": trial.values, "value": trial.value,
                "epoch": max(trial.epochs, default=None), "reason": trial.reason,
            }
            for trial in self.trials
        ]  # fmt: skip
        document = {
            "schema": 1, "metric": settings.metric, "direction": self.metric.direction, "stage": self.metric.stage,
            "trials": settings.trials, "parallel": settings.parallel, "sampler": settings.sampler.model_dump(),
            "prune": settings.prune and settings.prune.model_dump(),
            "space": {key: str(one) for key, one in settings.dimensions.items()},
            "asked": asked, "importance": self._study.importance(),
        }  # fmt: skip
        atomic.write_json(self.folder / DOCUMENT, document)
