"""The figure that a search goes by: which it is, whether more is better, and what trials have of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from kdscale.config.load import Sweep
from kdscale.errors import ConfigError
from kdscale.jobs.study import Direction
from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.planned import Plan, PlannedTrial
from kdscale.report.ranking import refuse_figures_of_test, smaller_is_better
from kdscale.report.records import SweepRecord
from kdscale.report.results import figures
from kdscale.trackers.spool import read_lines

__all__ = ["Metric", "metric_of"]


@dataclass
class Metric:
    """A validation figure of one stage of every trial."""

    name: str
    stage: str
    direction: Direction
    where: str
    """The config, for messages."""
    _read: dict[Path, tuple[int, dict[int, float]]] = field(default_factory=dict)
    """Of each spool how long it was, and its figures by epoch."""

    def value(self, sweep: Path, digests: Sequence[str]) -> float:
        """The mean of finished stages: what `report.py --best` ranks by; nan where one diverged.

        Raises:
            ConfigError: there is no such figure.
        """
        stages = SweepRecord(sweep).stages
        found = []
        for digest in digests:
            known = figures(stages[digest])
            if self.name not in known:
                raise self._unknown(list(known))
            value = known[self.name]
            found.append(math.nan if value is None else value)
        return fmean(found)

    def epochs(self, folders: Sequence[StageFolder], of: int) -> dict[int, float]:
        """The mean by epoch, of epochs that all `of` stages have been through. Raises: ConfigError: as `value`."""
        found = [self._of_spool(folder.metrics) for folder in folders]
        if len(found) < of:
            return {}
        common = set.intersection(*map(set, found))
        return {epoch: fmean(one[epoch] for one in found) for epoch in common}

    def _of_spool(self, spool: Path) -> dict[int, float]:
        size = spool.stat().st_size if spool.exists() else 0
        known, figures_ = self._read.get(spool, (0, {}))
        if size != known:
            lines = [line for line in read_lines(spool.read_bytes()) if any(n.startswith("val/") for n in line.metrics)]
            if lines and not any(self.name in line.metrics for line in lines):
                raise self._unknown(list(lines[0].metrics))
            figures_ = {round(line.epoch): line.metrics[self.name] for line in lines if self.name in line.metrics}
            self._read[spool] = size, figures_
        return figures_

    def _unknown(self, known: Sequence[str]) -> ConfigError:
        names = sorted(name for name in known if name.startswith("val/"))
        near = difflib.get_close_matches(self.name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        return ConfigError(f"{self.where}: sweep.metric: {self.stage} has no figure {self.name}; {hint}")


def metric_of(sweep: Sweep, corners: Plan) -> Metric:
    """The figure that a search names.

    Args:
        sweep: loaded.
        corners: its plan.

    Raises:
        ConfigError: it is of test or no figure of validation, no stage is called so, or nothing is held out.
    """
    settings = sweep.search
    assert settings is not None
    where = str(sweep.path)
    refuse_figures_of_test(settings.metric, f"{where}: sweep.metric: ")
    if not settings.metric.startswith("val/"):
        raise ConfigError(f"{where}: sweep.metric: {settings.metric} is no figure of validation: say val/top1")
    names = corners.trials[0].stages
    stage = settings.stage or _last(corners, corners.trials[0])
    if stage not in names:
        near = difflib.get_close_matches(stage, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"{where}: sweep.stage: no stage is called {stage}; {hint}")
    for trial in sweep.trials:
        spec = trial.stages[stage]
        if not spec.data.val_fraction or not spec.train.epochs:
            why = "data.val_fraction is 0" if not spec.data.val_fraction else "it trains for no epoch"
            raise ConfigError(f"{where}: sweep.metric: {stage} has no figure of validation to search by: {why}")
    natural: Direction = "minimize" if smaller_is_better(settings.metric) else "maximize"
    return Metric(settings.metric, stage, settings.direction or natural, where)


def _last(plan: Plan, trial: PlannedTrial) -> str:
    """The stage that a trial is about: nothing of the trial takes from it."""
    taken = {parent for digest in trial.stages.values() for parent, _ in plan.stages[digest].parents.values()}
    last = [name for name, digest in trial.stages.items() if digest not in taken] or list(trial.stages)
    return "student" if "student" in last else last[-1]
