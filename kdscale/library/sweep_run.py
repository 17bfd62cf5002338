"""A sweep that was begun: wait for it, see how it is, read what came out."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from kdscale.errors import ConfigError, StageError
from kdscale.jobs.overview import SweepView
from kdscale.jobs.status_screen import screen
from kdscale.library.shown import WIDTH, Shown
from kdscale.library.trained import TrainedStage
from kdscale.pipeline.artifacts import SweepFolder
from kdscale.pipeline.names import digest_in
from kdscale.report.ranking import chosen_groups, ranked
from kdscale.report.records import SweepRecord
from kdscale.report.results import collect

__all__ = ["LOG", "SweepRun"]

LOG = "launcher.log"
"""In a sweep's folder: what launchers said that Python started."""
POLL_S = 0.2
REFUSED = 2
"""Exit code of a launcher that could not begin."""


class SweepRun:
    """A sweep and its results, as its folder tells them; while it runs, and for ever after.

    Args:
        folder: of the sweep.
        launcher: the process that runs it, where this one started it.
        log_begins: where in the log that process began to write.
    """

    def __init__(
        self, folder: SweepFolder, launcher: subprocess.Popen[bytes] | None = None, *, log_begins: int = 0
    ) -> None:
        self._folder, self._launcher, self._log_begins = folder, launcher, log_begins

    def __repr__(self) -> str:
        counts = self._view().counts() if self._folder.plan_file.exists() else {"starting": 1}
        return f"SweepRun({self._folder.path.name!r}: {', '.join(f'{state} {n}' for state, n in counts.items())})"

    @property
    def path(self) -> Path:
        """The sweep's folder."""
        return self._folder.path

    @property
    def log(self) -> str:
        """What the launcher that runs it has said so far; empty where this process started none."""
        file = self.path / LOG
        return file.read_bytes()[self._log_begins :].decode(errors="replace") if file.exists() else ""

    # ------------------------------------------------------------------ while it runs

    def wait(self, timeout_s: float | None = None) -> SweepRun:
        """Wait until nothing moves any more, saying what begins and ends; returns itself.

        Interrupted (Ctrl-C, or a notebook's stop), only the waiting ends: `stop()` ends the run.

        Raises:
            ConfigError: the launcher could not begin; its words.
            TimeoutError: it is not over yet.
        """
        from kdscale.jobs.watch import Watch

        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._until_planned(deadline)
        with Watch(self.path, Console()) as watch:
            while not self.over:
                watch.update()
                self._pause(deadline)
            watch.update()
        self._demand_begun()
        return self

    def stop(self) -> SweepRun:
        """What Ctrl-C is to the command: stages on this machine save themselves and end, jobs of a cluster go on."""
        if self._launcher is not None and self._launcher.poll() is None:
            self._launcher.send_signal(signal.SIGINT)
            self._launcher.wait()
        return self

    @property
    def over(self) -> bool:
        """Whether nothing moves any more."""
        if self._launcher is not None:
            return self._launcher.poll() is not None
        return self._view().over

    def status(self) -> Shown:
        """How it is, as `launch/status.py` shows it."""
        self._until_planned(None)
        return Shown(screen(self._view(asks_queue=True), WIDTH))

    @property
    def states(self) -> dict[str, str]:
        """State of every unique stage, by a name that can be pasted into any command."""
        self._until_planned(None)
        return {stage.name: stage.status for stage in self._view().stages.values()}

    # ------------------------------------------------------------------ what came out

    def rows(self) -> list[dict[str, Any]]:
        """One a trial and stage, as results.json has them; figures of what is not done are None."""
        return collect(self.path)

    def frame(self) -> Any:
        """`rows()` as a pandas table, nested keys joined by dots; the rows themselves where pandas is not installed."""
        rows = self.rows()
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.json_normalize(rows)

    def best(
        self, metric: str = "val/rating", *, where: str | None = None, over: Sequence[str] | None = None
    ) -> TrainedStage:
        """The best trial by a figure of validation: of its repeats the median one, as the luckiest flatters.

        Args:
            metric: `val/...` or what is no figure of test; loss, size and time are best when small.
            where: a condition over figures and axes, such as "params_m <= 5".
            over: axes that are averaged over; default `seed`.

        Raises:
            ConfigError: there is no such figure, it is one of test, or nothing fits.
        """
        record = SweepRecord(self.path)
        groups, _ = chosen_groups([record], over, where)
        found = ranked(groups, metric)
        if not found:
            raise ConfigError(f"{self.path.name}: no finished trial{f' with {where}' if where else ''} has {metric}")
        return TrainedStage(record, found[0].typical(metric))

    def stage(self, name: str) -> TrainedStage:
        """A stage by its name, such as `student`, or `student[crd,s1]` of several. Raises: ConfigError."""
        self._until_planned(None)
        record = SweepRecord(self.path)
        return TrainedStage(record, record.stages[digest_in(self._folder.plan(), name, record.short)])

    def stages(self) -> list[TrainedStage]:
        """Every unique stage that trains or imports a network, parents first."""
        record = SweepRecord(self.path)
        return [TrainedStage(record, stage) for stage in record.trained]

    def model(self, name: str | None = None, weights: str = "last") -> nn.Module:
        """The network of a stage, in eval mode (see `TrainedStage.model`); by default of the one that all is about.

        Raises:
            ConfigError: there are several trials: name one, or ask for the best.
            StageError: it is not done.
        """
        if name is not None:
            return self.stage(name).model(weights)
        record = SweepRecord(self.path)
        finals = {trial.stages[record.final(trial)] for trial in record.trials}
        if len(finals) > 1:
            raise ConfigError(f"{record.short} has {len(finals)} final stages: name one, or take best(...).model()")
        return TrainedStage(record, record.stages[finals.pop()]).model(weights)

    def report(self) -> Path:
        """Write the report as of now; returns the page."""
        from kdscale.report.page import write_report

        return write_report(self.path)

    # ------------------------------------------------------------------ parts

    def _view(self, *, asks_queue: bool = False) -> SweepView:
        return SweepView(self._folder, asks_queue=asks_queue)

    def _until_planned(self, deadline: float | None) -> None:
        """The launcher plans once more before it writes the plan down."""
        while not self._folder.plan_file.exists():
            if self.over:
                self._demand_begun()
                raise StageError(f"{self.path.name} was left before it was planned; its launcher said:\n{self.log}")
            self._pause(deadline)

    def _pause(self, deadline: float | None) -> None:
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"{self.path.name} is not over yet")
        time.sleep(POLL_S)

    def _demand_begun(self) -> None:
        if self._launcher is not None and self._launcher.poll() == REFUSED:
            said = [line for line in self.log.splitlines() if line.startswith("error: ")]
            raise ConfigError(said[-1].removeprefix("error: ") if said else self.log)
