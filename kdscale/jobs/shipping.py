"""Who brings metrics to MLflow (`tracking.ship`): the launcher, the jobs of a cluster, or nobody for now.

              SQLite, or on this machine     a server, from a cluster
    auto      the launcher                   the launcher, and each job whose node gets an answer from the server
    job       the launcher                   the jobs alone (with SQLite refused: only one machine may write there)
    login     the launcher                   the launcher alone
    never     nobody until launch/track.py sync

Everybody writes to the spool first, and whoever ships holds one lock: nothing is shipped twice. Nothing here raises or
makes training wait for a server's sake.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.errors import ConfigError
from kdscale.jobs.stage_job import CANCELLED, DONE, FAILED
from kdscale.pipeline.artifacts import StageFolder
from kdscale.trackers.destination import destination
from kdscale.trackers.shipping import ShipperProcess, start_shipper

__all__ = ["check_tracking", "ship_the_end", "shipper_of_job", "shipper_of_launcher"]

log = logging.getLogger(__name__)

AT_THE_END_S = 20.0
"""What a job that is through gives its shipper for the last values."""


def check_tracking(root: Path, tracking: Mapping[str, Any], *, on_cluster: bool) -> None:
    """Before anything is written. Raises: ConfigError where the address, or who ships to it, cannot be."""
    to = destination(root, tracking["uri"], tracking["experiment"])
    if on_cluster and tracking["ship"] == "job" and to is not None and to.database is not None:
        raise ConfigError(
            f"tracking.ship: job needs a server, and tracking.uri is {to}: with SQLite only the launcher's machine "
            "writes. Leave ship out, or set tracking.uri: http(s)://HOST"
        )


def shipper_of_launcher(
    root: Path, folder: Path, tracking: Mapping[str, Any], say: Callable[[str], None], *, on_cluster: bool
) -> ShipperProcess | None:
    """The process that ships a sweep while its launcher lives; None where that is not the launcher's to do."""
    elsewhere = {"never", "job"} if on_cluster else {"never"}
    if tracking["uri"] == "off" or tracking["ship"] in elsewhere or not _mlflow():
        return None
    return start_shipper(root, folder, tracking["uri"], tracking["experiment"], say=say)


def shipper_of_job(root: Path, stage: StageFolder, rank: int) -> ShipperProcess | None:
    """The process that ships a stage while its job runs; None where that is not the job's to do.

    It finds out by itself whether the node reaches the server; this one does not wait for the answer.
    """
    definition = stage.definition()
    sweep = root / "sweeps" / str(definition.get("sweep"))
    plan = atomic.read_json(sweep / "plan.json")
    if rank or definition["kind"] != "train" or plan is None:
        return None
    tracking = plan["tracking"]
    to = destination(root, tracking["uri"], tracking["experiment"])
    if to is None or to.database is not None or tracking["ship"] not in ("auto", "job"):
        return None
    if not _mlflow():
        log.warning("tracking: MLflow is not installed here, so metrics are shipped from the login node")
        return None
    return start_shipper(root, sweep, to.uri, to.experiment, stage=stage.path, say=log.warning)


def ship_the_end(shipper: ShipperProcess | None, outcome: int, code: int) -> int:
    """Let a job's shipper bring the last values where the stage is through; returns the code to leave with."""
    if shipper is not None:
        if outcome in (DONE, FAILED, CANCELLED):
            for problem in shipper.finish(AT_THE_END_S)["problems"]:
                log.warning("tracking: %s", problem)
        else:  # its time is short, and it comes back
            shipper.kill()
    return code


def _mlflow() -> bool:
    return importlib.util.find_spec("mlflow") is not None
