"""Holding a stage's claim while its ranks run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kdscale import ranks
from kdscale.errors import StageError
from kdscale.pipeline.artifacts import Claim, StageFolder

__all__ = ["held"]


@contextmanager
def held(folder: StageFolder, attempt: Mapping[str, Any]) -> Iterator[Claim | None]:
    """Hold the stage's claim on rank 0; the other ranks learn whether it was got, and hold None.

    Args:
        folder: of the stage.
        attempt: what to record of this attempt.

    Raises:
        StageError: on every rank, where a live process holds the stage.
    """
    claim: Claim | None = None
    problem: StageError | None = None
    pids = ranks.gather_objects(os.getpid())
    if ranks.rank() == 0:
        try:
            claim = folder.claim({**attempt, "pids": pids})
        except StageError as error:
            problem = error
    problem = ranks.broadcast_object(problem)
    if problem is not None:
        raise problem
    try:
        yield claim
    finally:
        if claim is not None:
            claim.release()
