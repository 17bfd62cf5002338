"""What `--explain` and `--dry-run` print, one after the other; nothing is run."""

from __future__ import annotations

import argparse

from rich.console import Console

from kdscale.config.load import Sweep
from kdscale.jobs.slurm.profile import Profile
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan

__all__ = ["look"]


def look(
    plan: Plan, sweep: Sweep, root: Root, options: argparse.Namespace, profile: Profile | None, console: Console
) -> None:
    """Show what was asked for of a plan."""
    if options.explain:
        from kdscale.jobs.explanation import explain_screen

        console.print(explain_screen(plan, sweep, root))
    if options.dry_run:
        from kdscale.jobs.offline import to_fetch
        from kdscale.jobs.screens import plan_screen

        console.print(plan_screen(plan))
        scripts = _scripts(root, plan, profile) if profile is not None else []
        for text in [*to_fetch(plan), *scripts]:
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _scripts(root: Root, plan: Plan, profile: Profile) -> list[str]:
    from kdscale.jobs.slurm.submit import scripts

    return scripts(root, plan, profile)
