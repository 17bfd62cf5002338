"""Why the workers of a stage ended: what each of them wrote down, and which of it is the cause."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.jobs.stage_job import error_file

__all__ = ["FREE_SPACE", "HELD", "blamed", "causes_of", "forget_causes", "wording"]

Cause = Mapping[str, Any]

FREE_SPACE = "free some space (launch/runs.py du, launch/runs.py gc) and give the same command again"
HELD = "StageHeld"
"""Kind of the cause where another launcher's workers were faster."""

_PASSING = frozenset(
    {
        errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EREMOTEIO,
    }
)  # fmt: skip
"""Errors of a network or a file server, which may be gone in a minute."""
_OF_THE_NETWORK = frozenset({"DistNetworkError", "DistStoreError", "DistBackendError"})
_ECHOES = ("connection closed", "connection reset", "gloo", "nccl", "connectfullmesh", "timed out")
_ORDER = ("own", "disk", "passing", "lost")
"""Whose word counts, where ranks give several: an error of its own is never an echo of another's."""


def causes_of(stage: Path, attempt: int, world: int) -> list[dict[str, Any] | None]:
    """What each rank wrote down, in rank order; None where a rank wrote nothing.

    Args:
        stage: its folder.
        attempt: from 1.
        world: number of ranks.
    """
    return [atomic.read_json(error_file(stage, attempt, rank)) for rank in range(world)]


def blamed(causes: Sequence[Cause | None]) -> dict[str, Any] | None:
    """The cause among what ranks wrote, with its `class`: own, disk, passing or lost; None where none says.

    A rank that merely lost its peers is the cause only where no other wrote anything else and none fell silent: then
    it was the network.
    """
    written = [cause for cause in causes if cause is not None]
    classed = [{**cause, "class": _class_of(cause)} for cause in written if not _is_echo(cause)]
    if classed:
        return min(classed, key=lambda cause: _ORDER.index(cause["class"]))
    if written and len(written) == len(causes):
        return {**written[0], "class": "passing"}
    return None


def forget_causes(stage: Path, attempt: int, world: int) -> None:
    """Remove what workers wrote that ended before they were an attempt, and so left their number to these."""
    for rank in range(world):
        error_file(stage, attempt, rank).unlink(missing_ok=True)


def wording(cause: Cause) -> str:
    """A cause in words, with what would mend it."""
    text = str(cause["message"] if cause["own"] else f"{cause['kind']}: {cause['message']}")
    return f"{text}; {FREE_SPACE}" if cause["disk_full"] and FREE_SPACE not in text else text


def _class_of(cause: Cause) -> str:
    if cause["disk_full"]:
        return "disk"
    if cause["kind"] == "RankHung":
        return "lost"
    hidden = [int(number) for number in re.findall(r"\(os error (\d+)\)", cause["message"])]
    passing = cause["kind"] in _OF_THE_NETWORK or not _PASSING.isdisjoint([cause.get("errno"), *hidden])
    return "passing" if passing else "own"


def _is_echo(cause: Cause) -> bool:
    """Whether a rank only noticed that another one is gone."""
    text = cause["message"].lower()
    kinds = {"RuntimeError", *_OF_THE_NETWORK}
    return cause["kind"] in kinds and any(word in text for word in _ECHOES)
