"""Set right what sweeps on SLURM have lost, with nobody beside them: `launch/status.py --heal`, from cron as well.

For sites that cancel jobs where others requeue them, and for nights in which the scheduler itself is away. What is in
order is left alone, so it may be run as often as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from kdscale import atomic
from kdscale.config.load import load
from kdscale.errors import KDScaleError
from kdscale.jobs.slurm.follow import Follower
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.submit import CLUSTER_FILE, NOT_AGAIN, Submission
from kdscale.pipeline.artifacts import Root, SweepFolder
from kdscale.pipeline.machine import Site
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan

__all__ = ["heal_sweeps"]


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
    if cluster is None or sweep.launcher() is not None or _rests(root, sweep):  # who follows it heals it
        return []
    said: list[str] = []
    try:
        profile = Profile.model_validate(cluster["profile"])
        plan = make_plan(load(str(sweep.path / "sweep.yaml"), []), root, site=Site(profile.precision))
        if plan.folder_name != sweep.path.name:
            return ["kdscale has changed since it was submitted, and would make other stages: give its command again"]
        with sweep.launching():
            Follower(Submission(root, plan, profile, said.append)).look_after()
        _ship(root, sweep, plan)
    except KDScaleError as error:
        said.append(str(error))
    return said


def _rests(root: Root, sweep: SweepFolder) -> bool:
    """Whether no stage of it is to be run, or all that are wait for their user."""
    folders = [root.stage(digest) for digest in sweep.plan()["stages"]]
    return all(folder is not None and folder.state()["state"] in ("done", *NOT_AGAIN) for folder in folders)


def _ship(root: Root, sweep: SweepFolder, plan: Plan) -> None:
    """Send what jobs have spooled to MLflow."""
    uri, ship = plan.tracking.get("uri"), plan.tracking.get("ship")
    if uri == "off" or ship == "never" or find_spec("mlflow") is None:
        return
    from kdscale.trackers.shipping import start_shipper

    start_shipper(root.path, sweep.path, uri, plan.tracking["experiment"]).finish(timeout_s=60.0)
