"""`launch/cache.py` behind its command line."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from kdscale import atomic
from kdscale.errors import CacheError, DataError, KDScaleError, StageError
from kdscale.jobs.causes import FREE_SPACE
from kdscale.pipeline.artifacts import Root

__all__ = ["run_command"]

DONE, WRONG, USAGE, INTERRUPTED = 0, 1, 2, 130


def run_command(options: argparse.Namespace) -> int:
    """Run one verb; returns the exit code."""
    try:
        return _run(options, Console())
    except OSError as error:
        if not atomic.is_disk_full(error):
            raise
        return _refuse(f"{error}; {FREE_SPACE}", WRONG)
    except KDScaleError as error:
        return _refuse(str(error), WRONG if isinstance(error, CacheError | DataError | StageError) else USAGE)
    except KeyboardInterrupt:
        return _refuse("stopped; what was done stays done", INTERRUPTED)


def _refuse(text: str, code: int) -> int:
    print(f"error: {text}" if code != INTERRUPTED else text, file=sys.stderr)  # noqa: T201
    return code


def _run(options: argparse.Namespace, console: Console) -> int:
    root = Root.find(options.runs)
    if options.verb == "info":
        from kdscale.jobs.cache_info import info

        return info(root, options.name, console, as_json=options.json)
    return _others(options, root, console)


def _others(options: argparse.Namespace, root: Root, console: Console) -> int:
    if options.verb == "verify":
        from kdscale.jobs.cache_verify import verify

        return verify(
            root, options.name, console, records=options.recompute, seed=options.seed, mends=options.repair,
            as_json=options.json,
        )  # fmt: skip
    raise NotImplementedError
