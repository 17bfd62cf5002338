"""The one question before a large sweep."""

from __future__ import annotations

import shutil
import sys

from kdscale.errors import ConfigError
from kdscale.pipeline.artifacts import Root

__all__ = ["agreed"]

ASK_ABOVE_JOBS = 100
ASK_ABOVE_BYTES = 10e9


def agreed(jobs: int, size: float, root: Root, *, yes: bool) -> bool:
    """Ask, above 100 jobs or 10 GB; refuse what the disk cannot hold.

    Args:
        jobs: stages to run.
        size: bytes that they may write.
        root: of the runs.
        yes: whether the answer was given already.

    Raises:
        ConfigError: the disk is too small, or there is nobody to ask.
    """
    there = next(folder for folder in (root.path, *root.path.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise ConfigError(
            f"the sweep may write {size / 1e9:.1f} GB, {root.path} has {free / 1e9:.1f} GB free (launch/runs.py du)"
        )
    if yes or (jobs <= ASK_ABOVE_JOBS and size <= ASK_ABOVE_BYTES):
        return True
    question = f"{jobs} stages to run, up to {size / 1e9:.1f} GB to write; go on? [y/N] "
    if not sys.stdin.isatty():
        raise ConfigError(f"{question.removesuffix('; go on? [y/N] ')}: say --yes")
    return input(question).strip().lower() in ("y", "yes")
