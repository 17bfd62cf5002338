"""Set right what sweeps on SLURM have lost, with nobody beside them: `launch/status.py --heal`, from cron as well.

For sites that cancel jobs where others requeue them, and for nights in which the scheduler itself is away. What is in
order is left alone, so it may be run as often as one likes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.config.load import load
from kdscale.errors import KDScaleError
from kdscale.jobs.search import Search
from kdscale.jobs.search_files import asks_on, is_held, is_search
from kdscale.jobs.shipping import shipper_of_launcher
from kdscale.jobs.slurm.follow import Follower
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.submit import CLUSTER_FILE, NOT_AGAIN, Submission
from kdscale.jobs.stage_exports import write_exports
from kdscale.pipeline.artifacts import Root, SweepFolder
from kdscale.pipeline.machine import Site
from kdscale.pipeline.plan import make_plan
from kdscale.report.page import write_report
from kdscale.report.results import write_results
from kdscale.report.search import DOCUMENT

__all__ = ["heal_sweeps"]

CHANGED = "kdscale has changed since it was submitted, and would make other stages: give its command again"
_log = logging.getLogger(__name__)


def heal_sweeps(root: Root, sweep: SweepFolder | None) -> list[str]:
    """Look after one sweep that was submitted, or all of a root, once.

    Returns:
        What was done, or could not be, in lines.
    """
    folders = [sweep] if sweep is not None else [SweepFolder(path) for path in sorted(_submitted(root))]
    return [f"{folder.path.name}: {text}" for folder in folders for text in _heal(root, folder)]


def _submitted(root: Root) -> Iterator[Path]:
    return (path.parent for path in (root.path / "sweeps").glob(f"*/{CLUSTER_FILE}"))


def _heal(root: Root, sweep: SweepFolder) -> list[str]:
    cluster = atomic.read_json(sweep.path / CLUSTER_FILE)
    if cluster is None or sweep.launcher() is not None:  # who follows it heals it
        return []
    if is_search(sweep.path):
        return _heal_search(root, sweep, cluster)
    states = [folder.state() for digest in sweep.plan()["stages"] if (folder := root.stage(digest)) is not None]
    if all(state["state"] in ("done", *NOT_AGAIN) for state in states):
        return _conclude(root, sweep, max((state["updated"] for state in states), default=0.0))
    said: list[str] = []
    try:
        profile = Profile.model_validate(cluster["profile"])
        plan = make_plan(load(str(sweep.path / "sweep.yaml"), []), root, site=Site(profile.precision))
        if plan.folder_name != sweep.path.name:
            return [CHANGED]
        with sweep.launching():
            Follower(Submission(root, plan, profile, said.append)).look_after()
        _ship(root, sweep)
    except KDScaleError as error:
        said.append(str(error))
    return said


def _heal_search(root: Root, sweep: SweepFolder, cluster: Mapping[str, Any]) -> list[str]:
    """Look after its jobs, tell what trials came to, and ask for the next ones."""
    if not asks_on(sweep.path):
        rests_since = (sweep.path / DOCUMENT).stat().st_mtime
        return [] if is_held(sweep.path) else _conclude(root, sweep, rests_since)
    said: list[str] = []
    try:
        profile = Profile.model_validate(cluster["profile"])
        loaded = load(str(sweep.path / "sweep.yaml"), [])
        search = Search(loaded, root, command=sweep.plan()["command"], site=Site(profile.precision))
        if search.folder != sweep.path:
            return [CHANGED]
        with sweep.launching():
            _look_after(search, root, profile, said.append)
        _ship(root, sweep)
    except KDScaleError as error:
        said.append(str(error))
    return said


def _look_after(search: Search, root: Root, profile: Profile, say: Callable[[str], None]) -> None:
    try:
        follower = Follower(Submission(root, search.begin(resumed=False), profile, say))
        follower.look_after()
        fresh = search.go_on()
        if search.problem is not None:
            raise search.problem
        if fresh is not None:
            follower.extend(search.running, fresh)
    finally:
        search.end()


def _conclude(root: Root, sweep: SweepFolder, rests_since: float) -> list[str]:
    """What the launcher does at its end, once nothing of a sweep runs or waits any more."""
    results = sweep.path / "results.json"
    if results.exists() and results.stat().st_mtime > rests_since:
        return []
    _ship(root, sweep)
    write_results(sweep.path)
    said = [f"at rest; report {write_report(sweep.path)}"]
    write_exports(root.path, sweep.path, said.append)
    return said


def _ship(root: Root, sweep: SweepFolder) -> None:
    """Send what jobs have spooled to MLflow."""
    shipper = shipper_of_launcher(root.path, sweep.path, sweep.plan()["tracking"], _log.warning, on_cluster=True)
    if shipper is not None:
        shipper.finish(timeout_s=60.0)
