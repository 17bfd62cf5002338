"""A loaded config: look at its plan, run it."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kdscale.config.load import Sweep, Trial, load
from kdscale.errors import ConfigError
from kdscale.jobs.bundles import bundle_of
from kdscale.library import launcher
from kdscale.library.shown import Shown
from kdscale.library.sweep_run import LOG, SweepRun
from kdscale.pipeline.artifacts import Root, SweepFolder
from kdscale.pipeline.planned import Plan

if TYPE_CHECKING:
    from kdscale.jobs.search import Search

__all__ = ["Experiment", "PlannedSweep"]


class PlannedSweep(Shown):
    """What a run would do, as `--dry-run` shows it.

    Attributes:
        plan: its trials, unique stages and costs.
    """

    def __init__(self, plan: Plan) -> None:
        from kdscale.jobs.screens import plan_screen

        super().__init__(plan_screen(plan))
        self.plan = plan


class Experiment:
    """A config with its overrides, validated.

    Args:
        config: a YAML file, `kdscale:NAME` of a shipped one, or a bundle (.zip).
        overrides: KEY=VALUE texts, as on the command line.
        runs: the folder for results; default $KDSCALE_RUNS, else ./runs.

    Raises:
        ConfigError: one line that names file, key and the nearest valid key.
    """

    def __init__(self, config: str, overrides: Sequence[str] = (), runs: Path | None = None) -> None:
        self.config, self.overrides = config, list(overrides)
        self.root = Root.find(runs)
        self.sweep: Sweep = self._loaded()

    def __repr__(self) -> str:
        trials = len(self.trials)
        return f"Experiment({self.name!r}, {trials} trial{'s' * (trials != 1)}, runs in {self.root.path})"

    @property
    def name(self) -> str:
        """Of the sweep."""
        return self.sweep.name

    @property
    def trials(self) -> list[Trial]:
        """Every combination of axis values, each with its whole config."""
        return self.sweep.trials

    def plan(self, cluster: str = "local") -> PlannedSweep:
        """Plan, check and cost everything; runs and fetches nothing.

        Args:
            cluster: as `run` takes it.

        Raises:
            KDScaleError: the plan cannot be made; names the key.
        """
        options = self._options(cluster)
        options.dry_run = True
        return PlannedSweep(self._planned(options)[0])

    def run(
        self, cluster: str = "local", *, fresh: Sequence[str] = (), retry_failed: bool = False, profile: bool = False,
        yes: bool = False,
    ) -> SweepRun:  # fmt: skip
        """Run what is not done yet.

        Args:
            cluster: `local` (worker processes on this machine), `inline` (in this very process: for debuggers),
                `slurm`, or the profile of a cluster (PROFILE.yaml).
            fresh: finished stages to make anew.
            retry_failed: run stages again that failed by an error of their own.
            profile: measure where the time of each stage's steps goes.
            yes: also a sweep of more than 100 jobs or 10 GB.

        Returns:
            At once, while a launcher in a process of its own goes on, even when this one ends; `inline` when all is
            done. Failed stages raise nothing: `SweepRun.status()` says what failed, and why.

        Raises:
            KDScaleError: the config, the plan or the cluster's profile cannot be used; nothing was started.
        """
        self.sweep = self._loaded()  # as the file is now: a launcher of its own reads it again
        options = self._options(cluster, fresh=[*fresh], retry_failed=retry_failed, profile=profile, yes=yes)
        plan, search = self._planned(options)
        folder = self.root.path / "sweeps" / plan.folder_name
        if cluster == "inline":
            self._run_here(plan, options, search)
            return SweepRun(SweepFolder(folder))
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / LOG
        begins = log.stat().st_size if log.exists() else 0
        return SweepRun(SweepFolder(folder), launcher.start(options, log), log_begins=begins)

    def _run_here(self, plan: Plan, options: argparse.Namespace, search: Search | None) -> None:
        from kdscale.jobs.command import execute

        if threading.current_thread() is not threading.main_thread():
            raise ConfigError('cluster="inline" runs on the main thread alone, for it listens to Ctrl-C: use "local"')
        with _as_it_was():
            execute(plan, self.root, options, Console(), None, self.sweep, None, search)

    def _loaded(self) -> Sweep:
        bundle = bundle_of(self.config, self.root)
        return bundle.load(self.overrides) if bundle else load(self.config, self.overrides)

    def _options(self, cluster: str, **flags: Any) -> argparse.Namespace:
        return launcher.options_of(self.config, self.overrides, cluster, self.root.path, **flags)

    def _planned(self, options: argparse.Namespace) -> tuple[Plan, Search | None]:
        from kdscale.jobs.command import planned, profile_named

        profile = profile_named(options.cluster)
        return planned(self.sweep, self.root, options, launcher.command_of(options), profile)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Give back what stages set for their process: generators, threads, and how strictly torch is deterministic."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
