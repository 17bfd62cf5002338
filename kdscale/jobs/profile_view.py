"""`logs.py STAGE --profile N`: measure where the time of a running stage's steps goes, and print it."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from kdscale.errors import StageError
from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.profiles import Profiles
from kdscale.report.grid import Screen
from kdscale.report.profiles import profile_grid, profile_of

__all__ = ["profile"]

LOOK_EVERY_S = 0.3


def profile(folder: StageFolder, steps: int) -> None:
    """Ask the stage's ranks for a profile, wait for it, and print it. An unfulfilled wish is taken back.

    Args:
        folder: of the stage, which must run.
        steps: to measure; a line of metrics belongs to it in any case.

    Raises:
        StageError: nobody runs the stage, or it ended before all was measured.
    """
    if folder.claimant() is None:
        raise StageError(
            f"{folder.path.name} does not run ({folder.state()['state']}): "
            "python launch/sweep.py CONFIG --profile measures a stage when it does"
        )
    profiles = Profiles(folder.path)
    asked = time.time()
    profiles.ask(steps)
    noticed = f"{folder.path.name} is asked: it looks about once a second, and measures up to a line of metrics"
    print(noticed, file=sys.stderr)  # noqa: T201 - beside the table, not in it
    try:
        while profiles.wish() is not None and folder.claimant() is not None:
            time.sleep(LOOK_EVERY_S)
    finally:
        profiles.forget_wish()
    found = profile_of(folder.path, folder.name)
    if found is None or found.ranks[0]["when"] < asked:
        raise StageError(f"{folder.path.name} ended ({folder.state()['state']}) before {steps} steps were measured")
    Console().print(Screen(profile_grid([found])))
