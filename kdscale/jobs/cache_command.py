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
    if options.verb == "plan":
        return _plan(options, root, console)
    if options.verb == "info":
        from kdscale.jobs.cache_info import info

        return info(root, options.name, console, as_json=options.json)
    return _others(options, root, console)


def _plan(options: argparse.Namespace, root: Root, console: Console) -> int:
    from kdscale.config.load import load
    from kdscale.jobs.cache_plan import caches_of_plan
    from kdscale.jobs.cache_plan_screen import show_caches
    from kdscale.pipeline.plan import make_plan

    plan = make_plan(load(options.config, options.overrides), root)
    show_caches(caches_of_plan(plan, root), plan.folder_name, console, as_json=options.json)
    return DONE


def _others(options: argparse.Namespace, root: Root, console: Console) -> int:
    if options.verb == "verify":
        from kdscale.jobs.cache_verify import verify

        return verify(
            root, options.name, console, records=options.recompute, seed=options.seed, mends=options.repair,
            as_json=options.json,
        )  # fmt: skip
    if options.verb == "gc":
        from kdscale.jobs.cache_gc import gc

        return gc(
            root, console, older=options.older_than, larger=options.larger_than, keep=options.keep_bytes,
            dry_run=options.dry_run, yes=options.yes,
        )  # fmt: skip
    from kdscale.jobs.cache_export import export

    return export(
        root, options.name, console, format_=options.format, out=options.out, view=options.view, rows=options.rows,
        force=options.force,
    )  # fmt: skip
