"""Why the workers of a stage ended: what each of them wrote down, and which of it is the cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.jobs.stage_job import error_file

__all__ = ["FREE_SPACE", "HELD", "first_cause", "forget_causes", "wording"]

FREE_SPACE = "free some space (launch/runs.py du, launch/runs.py gc) and give the same command again"
HELD = "StageHeld"
"""Kind of the cause where another launcher's workers were faster."""

_ECHOES = ("connection closed", "connection reset", "gloo", "nccl", "connectfullmesh", "timed out")


def first_cause(stage: Path, attempt: int, world: int) -> dict[str, Any] | None:
    """The cause that a rank wrote down; a rank that merely lost its peers is not the cause.

    Args:
        stage: its folder.
        attempt: from 1.
        world: number of ranks.
    """
    written = [atomic.read_json(error_file(stage, attempt, rank)) for rank in range(world)]
    return next((cause for cause in written if cause is not None and not _is_echo(cause)), None)


def forget_causes(stage: Path, attempt: int, world: int) -> None:
    """Remove what workers wrote that ended before they were an attempt, and so left their number to these."""
    for rank in range(world):
        error_file(stage, attempt, rank).unlink(missing_ok=True)


def wording(cause: dict[str, Any]) -> str:
    """A cause in words, with what would mend it."""
    text = cause["message"] if cause["own"] else f"{cause['kind']}: {cause['message']}"
    return f"{text}; {FREE_SPACE}" if cause["disk_full"] and FREE_SPACE not in text else text


def _is_echo(cause: dict[str, Any]) -> bool:
    """Whether a rank only noticed that another one is gone."""
    text = cause["message"].lower()
    kinds = ("RuntimeError", "DistBackendError", "DistNetworkError")
    return cause["kind"] in kinds and any(word in text for word in _ECHOES)
