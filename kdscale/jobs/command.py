"""`launch/sweep.py` behind its command line: load -> plan -> show, or prepare -> run -> report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kdscale import atomic
from kdscale.errors import ConfigError, KDScaleError, StageError
from kdscale.jobs.causes import FREE_SPACE

if TYPE_CHECKING:
    from rich.console import Console

    from kdscale.config.load import Sweep
    from kdscale.jobs.search import Search
    from kdscale.jobs.slurm.profile import Profile
    from kdscale.jobs.warm import WarmParent
    from kdscale.pipeline.artifacts import Root
    from kdscale.pipeline.planned import Plan

__all__ = ["execute", "planned", "profile_named", "run_command"]

DONE, FAILED, USAGE = 0, 1, 2


def run_command(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run what the command line asks for; returns the exit code."""
    try:
        return _run(options, "python launch/sweep.py " + shlex.join(arguments))
    except OSError as error:
        if not atomic.is_disk_full(error):
            raise
        return _refuse(StageError(f"{error}; {FREE_SPACE}"), FAILED)
    except ConfigError as error:
        return _refuse(error, USAGE)
    except KDScaleError as error:
        return _refuse(error, FAILED if isinstance(error, StageError) else USAGE)


def _refuse(error: KDScaleError, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    return code


def _run(options: argparse.Namespace, command: str) -> int:
    from kdscale.jobs import listings

    if options.schema:
        return listings.schema()
    if options.list:
        return listings.plugins_of([*options.list, *([options.config] if options.config else []), *options.overrides])
    if not options.config:
        raise ConfigError("which config? python launch/sweep.py CONFIG [KEY=VALUE ...] (see --help)")
    profile = profile_named(options.cluster)
    warm = _warm_parent(options)
    try:
        return _sweep(options, command, warm, profile)
    finally:
        if warm is not None:
            warm.close()


def profile_named(cluster: str) -> Profile | None:
    """What `--cluster` names, where it is not this machine. Raises: ConfigError."""
    if cluster in ("local", "inline"):
        return None
    from kdscale.jobs.slurm.profile import load_profile

    return load_profile(cluster)


def _warm_parent(options: argparse.Namespace) -> WarmParent | None:
    """Start importing for the workers at once, while the plan is made."""
    idle = (options.dry_run, options.explain, options.show_config, options.smoke, options.prepare)
    if options.cluster != "local" or any(idle):
        return None
    from kdscale.jobs.warm import WarmParent

    return WarmParent()


def _sweep(options: argparse.Namespace, command: str, warm: WarmParent | None, profile: Profile | None) -> int:
    from rich.console import Console

    from kdscale.config.load import load
    from kdscale.jobs.bundles import bundle_of
    from kdscale.pipeline.artifacts import Root

    console = Console()
    root = Root.find(options.runs)
    bundle = bundle_of(options.config, root)
    sweep = bundle.load(options.overrides) if bundle else load(options.config, options.overrides)
    if options.show_config:
        from kdscale.config.show import show_config

        console.print(show_config(sweep), markup=False, highlight=False, soft_wrap=True)
        return DONE
    if bundle:
        bundle.tell_plugins(console)
    plan, search = planned(sweep, root, options, command, profile)
    if profile is not None:
        from kdscale.jobs.slurm.bounds import within_limits

        profile = within_limits(profile, plan)
    if bundle:
        bundle.tell_differences(plan, console)
    if options.explain or options.dry_run:
        from kdscale.jobs.looking import look

        look(plan, sweep, root, options, profile, console, search)
        return DONE
    if options.smoke:
        from kdscale.jobs.smoke import smoke

        return smoke(plan, sweep, root, console)
    code = execute(plan, root, options, console, warm, sweep, profile, search)
    if bundle and code != USAGE:
        bundle.tell_results(root.path / "sweeps" / plan.folder_name, console)
    return code


def planned(
    sweep: Sweep, root: Root, options: argparse.Namespace, command: str, profile: Profile | None
) -> tuple[Plan, Search | None]:
    """What is to run; of a search what would run next, as nothing is written yet. To look only, nothing is fetched.

    Raises:
        KDScaleError: with the key path, for whatever could not work.
    """
    from kdscale.pipeline.machine import Site
    from kdscale.pipeline.plan import make_plan

    runs = not (options.dry_run or options.explain)
    site = None
    if profile is not None:
        from kdscale.jobs.slurm.sbatch import caches_of_weights

        os.environ.update(caches_of_weights(root.path))
        site = Site(profile.precision)
    if sweep.search is None:
        return make_plan(sweep, root, fresh=options.fresh, fetch=runs, command=command, site=site), None
    from kdscale.jobs.search import Search

    if options.fresh:
        raise ConfigError(
            "--fresh: what trials of a search came to is told already; launch/runs.py rm takes stages out"
        )
    search = Search(sweep, root, command=command, site=site, fetch=runs, profile=options.profile)
    return search.preview(), search


def execute(  # noqa: PLR0913
    plan: Plan, root: Root, options: argparse.Namespace, console: Console, warm: WarmParent | None, sweep: Sweep,
    profile: Profile | None, search: Search | None,
) -> int:  # fmt: skip
    """Prepare a plan's folders and run what is to be run; returns the exit code. Raises: KDScaleError."""
    from kdscale.jobs.shipping import check_tracking

    check_tracking(root.path, plan.tracking, on_cluster=profile is not None)
    if not _agreed(plan, root, search, yes=options.yes):
        return USAGE
    from kdscale.jobs.launching import Launch, run_inline, run_local, run_slurm
    from kdscale.jobs.prepare import prepare_folders
    from kdscale.jobs.sweep_folder import write_sweep
    from kdscale.pipeline.artifacts import SweepFolder

    with ExitStack() as at_the_end:
        if search is not None:
            at_the_end.callback(search.end)
            plan = search.begin(resumed=True)
        folder = write_sweep(root, search.plan.whole if search else plan, sweep)
        if options.prepare:
            from kdscale.jobs.offline import Preparation

            ready = Preparation(plan, root, folder, console).run(profile, detach=options.detach)
            return DONE if ready else FAILED
        prepare_folders(root, plan, retry_failed=options.retry_failed, profile=options.profile)
        at_the_end.enter_context(SweepFolder(folder).launching())
        launch = Launch(plan, root, folder, console, search)
        if options.cluster == "inline":
            return run_inline(launch)
        if profile is not None:
            return run_slurm(launch, profile, detach=options.detach)
        assert warm is not None
        return run_local(launch, warm)


def _agreed(plan: Plan, root: Root, search: Search | None, *, yes: bool) -> bool:
    from kdscale.jobs.agreement import agreed

    if search is not None:
        from kdscale.jobs.search_drive import expected

        return agreed(*expected(search), root, yes=yes)
    return agreed(len(plan.todo), float(sum(stage.cost.bytes for stage in plan.todo)), root, yes=yes)
