"""What `--explain` and `--dry-run` print, one after the other; nothing is run."""

from __future__ import annotations

import argparse

from rich.console import Console

from kdscale.config.load import Sweep
from kdscale.jobs.search import Search
from kdscale.jobs.slurm.profile import Profile
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan

__all__ = ["look"]


def look(  # noqa: PLR0913
    plan: Plan, sweep: Sweep, root: Root, options: argparse.Namespace, profile: Profile | None, console: Console,
    search: Search | None = None,
) -> None:  # fmt: skip
    """Show what was asked for of a plan."""
    if options.explain:
        from kdscale.jobs.explanation import explain_screen

        console.print(explain_screen(plan, sweep, root))
    if options.dry_run:
        from kdscale.jobs.offline import to_fetch
        from kdscale.jobs.screens import plan_screen

        console.print(plan_screen(plan))
        scripts = _scripts(root, plan, profile) if profile is not None else []
        for text in [*_searched(search), *to_fetch(plan), *scripts]:
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _searched(search: Search | None) -> list[str]:
    if search is None:
        return []
    from kdscale.jobs.search_drive import preview_lines

    return list(preview_lines(search))


def _scripts(root: Root, plan: Plan, profile: Profile) -> list[str]:
    from kdscale.jobs.slurm.submit import scripts

    return scripts(root, plan, profile)
