"""Finished and unfinished work of a run folder, found again."""

from __future__ import annotations

from pathlib import Path

from kdscale.config.complaints import hint
from kdscale.errors import ConfigError
from kdscale.library.sweep_run import SweepRun
from kdscale.library.trained import TrainedStage
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import resolve
from kdscale.report.ranking import filter_of, kept_by
from kdscale.report.records import StageRecord, SweepRecord, TrialRecord

__all__ = ["Runs", "runs"]


def runs(path: str | Path | None = None) -> Runs:
    """Look into a run folder.

    Args:
        path: of the folder; default $KDSCALE_RUNS, else ./runs.
    """
    return Runs(Root.find(None if path is None else Path(path).expanduser()))


class Runs:
    """What lies in a run folder.

    Args:
        root: of the folder, with the roots that it reuses from.
    """

    def __init__(self, root: Root) -> None:
        self._root = root

    def __repr__(self) -> str:
        return f"Runs({str(self._root.path)!r}: {', '.join(s.path.name for s in self._root.sweeps()) or 'no sweep'})"

    def sweeps(self) -> list[SweepRun]:
        """All sweeps, the one that was planned last first."""
        return [SweepRun(folder) for folder in self._root.sweeps()]

    def sweep(self, name: str = "latest") -> SweepRun:
        """A sweep by its name, `name-digest`, or `latest`. Raises: ConfigError."""
        found = resolve(name, self._root)
        if not isinstance(found, SweepFolder):
            raise ConfigError(f"{name} is a stage: runs(...).stage({name!r})")
        return SweepRun(found)

    def stage(self, name: str) -> TrainedStage:
        """A stage by a name as every screen prints it: `bench:student[crd,s1]`, `3f21ab`. Raises: ConfigError."""
        found = resolve(name, self._root)
        if not isinstance(found, StageFolder):
            raise ConfigError(f"{name} is a sweep: runs(...).sweep({name!r})")
        for sweep in map(SweepRecord, (folder.path for folder in self._root.sweeps())):
            if found.digest in sweep.stages:
                return TrainedStage(sweep, sweep.stages[found.digest])
        raise ConfigError(f"{name}: no sweep in {self._root.path} uses this stage")

    def find(
        self, stage: str | None = None, *, where: str | None = None, state: str | None = "done", **axes: object
    ) -> list[TrainedStage]:
        """Stages of all sweeps, each once, of the sweep that was planned last first.

        Args:
            stage: its name in the config; default what each trial is about.
            where: a condition over figures and axes, such as "params_m <= 5".
            state: in which it is; None for any.
            axes: values of the trial's axes: `method="crd", seed=1`.

        Raises:
            ConfigError: no sweep has such an axis, or the condition names something unknown.
        """
        sweeps = [SweepRecord(folder.path) for folder in self._root.sweeps()]
        known = sorted({axis for sweep in sweeps for axis in sweep.axes})
        if missing := [axis for axis in axes if axis not in known]:
            raise ConfigError(f"{missing[0]}: no sweep in {self._root.path} has such an axis{hint(missing[0], known)}")
        keep = kept_by(filter_of(sweeps, where)) if where else None
        values = {axis: str(value) for axis, value in axes.items()}
        found: dict[str, TrainedStage] = {}
        for sweep in sweeps:
            for trial in sweep.trials:
                record = _stage_of(sweep, trial, stage)
                fits = record is not None and values.items() <= trial.axes.items() and state in (None, record.status)
                if record is not None and fits and (keep is None or keep(trial, record)):
                    found.setdefault(record.digest, TrainedStage(sweep, record))
        return [*found.values()]


def _stage_of(sweep: SweepRecord, trial: TrialRecord, name: str | None) -> StageRecord | None:
    """A trial's stage of that name, or what the trial is about; None where it has no such network."""
    name = name or sweep.final(trial)
    record = sweep.stage(trial, name) if name in trial.stages else None
    return record if record is not None and record.kind == "train" else None
