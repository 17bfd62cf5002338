"""`launch/sweep.py` behind its command line: load -> plan -> show, or prepare -> run -> report."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from kdscale import atomic
from kdscale.errors import ConfigError, KDScaleError, StageError
from kdscale.jobs.causes import FREE_SPACE

if TYPE_CHECKING:
    from rich.console import Console

    from kdscale.config.load import Sweep
    from kdscale.jobs.slurm.profile import Profile
    from kdscale.jobs.warm import WarmParent
    from kdscale.pipeline.artifacts import Root
    from kdscale.pipeline.planned import Plan
    from kdscale.trackers.shipping import ShipperProcess

__all__ = ["execute", "planned", "profile_named", "run_command"]

ASK_ABOVE_JOBS = 100
ASK_ABOVE_BYTES = 10e9
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
    plan = planned(sweep, root, options, command, profile)
    if profile is not None:
        from kdscale.jobs.slurm.bounds import within_limits

        profile = within_limits(profile, plan)
    if bundle:
        bundle.tell_differences(plan, console)
    if options.explain or options.dry_run:
        from kdscale.jobs.looking import look

        look(plan, sweep, root, options, profile, console)
        return DONE
    if options.smoke:
        from kdscale.jobs.smoke import smoke

        return smoke(plan, sweep, root, console)
    code = execute(plan, root, options, console, warm, sweep, profile)
    if bundle and code != USAGE:
        bundle.tell_results(root.path / "sweeps" / plan.folder_name, console)
    return code


def planned(sweep: Sweep, root: Root, options: argparse.Namespace, command: str, profile: Profile | None) -> Plan:
    """Plan a sweep for where it will run; to look only, nothing is fetched. Raises: KDScaleError."""
    from kdscale.pipeline.machine import Site
    from kdscale.pipeline.plan import make_plan

    runs = not (options.dry_run or options.explain)
    site = None
    if profile is not None:
        from kdscale.jobs.slurm.sbatch import caches_of_weights

        os.environ.update(caches_of_weights(root.path))
        site = Site(profile.precision)
    return make_plan(sweep, root, fresh=options.fresh, fetch=runs, command=command, site=site)


def execute(  # noqa: PLR0913
    plan: Plan, root: Root, options: argparse.Namespace, console: Console, warm: WarmParent | None, sweep: Sweep,
    profile: Profile | None,
) -> int:  # fmt: skip
    """Prepare a plan's folders and run what is to be run; returns the exit code. Raises: KDScaleError."""
    from kdscale.jobs.shipping import check_tracking

    check_tracking(root.path, plan.tracking, on_cluster=profile is not None)
    if not _agreed(plan, root, options):
        return USAGE
    from kdscale.jobs.prepare import prepare_folders
    from kdscale.pipeline.artifacts import SweepFolder

    folder = _sweep_folder(root, plan, sweep)
    if options.prepare:
        from kdscale.jobs.offline import Preparation

        ready = Preparation(plan, root, folder, console).run(profile, detach=options.detach)
        return DONE if ready else FAILED
    prepare_folders(root, plan, retry_failed=options.retry_failed, profile=options.profile)
    with SweepFolder(folder).launching():
        if options.cluster == "inline":
            from kdscale.jobs.inline import run_inline

            states = run_inline(root, plan, lambda text: console.print(text, markup=False, highlight=False))
            ended = "interrupted" not in states.values()
            return _concluded(plan, folder, root, states, console, None, ended=ended)
        if profile is not None:
            return _run_slurm(plan, root, folder, console, profile, detach=options.detach)
        assert warm is not None
        return _run_local(plan, root, folder, console, warm)


def _sweep_folder(root: Root, plan: Plan, sweep: Sweep) -> Path:
    from kdscale.jobs.launch_record import record_launch

    folder = root.path / "sweeps" / plan.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    document = plan.document() | {"expect": [one.model_dump(exclude_unset=True) for one in sweep.expect]}
    first = atomic.read_json(folder / "plan.json")
    if first is not None:  # what the first launch found done is what this sweep reused, whatever is done by now
        document["created"] = first["created"]
        for digest, entry in document["stages"].items():
            entry["reused"] = first["stages"].get(digest, entry)["reused"]
    atomic.write_json(folder / "plan.json", document)
    atomic.write_text(folder / "sweep.yaml", sweep.text)
    record_launch(folder, plan)
    return folder


def _run_local(plan: Plan, root: Root, folder: Path, console: Console, warm: WarmParent) -> int:
    from kdscale.jobs.local import LocalRun
    from kdscale.jobs.shipping import shipper_of_launcher
    from kdscale.jobs.watch import Watch

    with Watch(folder, console) as watch:
        shipper = shipper_of_launcher(root.path, folder, plan.tracking, watch.say, on_cluster=False)
        local = LocalRun(root, plan, watch.say, parallel=plan.limits.get("parallel"), warm=warm)
        with _OnSignals(local.ask_to_stop):
            states = local.run(watch.update)
        watch.update()
    code = _concluded(plan, folder, root, states, console, shipper, ended=not local.stopped)
    if local.stopped:
        console.print("stopped; the same command goes on from here", markup=False)
    return code


def _run_slurm(plan: Plan, root: Root, folder: Path, console: Console, profile: Profile, *, detach: bool) -> int:
    from kdscale.jobs.shipping import shipper_of_launcher
    from kdscale.jobs.slurm.follow import Follower
    from kdscale.jobs.slurm.submit import Submission
    from kdscale.jobs.watch import Watch

    with Watch(folder, console) as watch:
        submission = Submission(root, plan, profile, watch.say)
        submission.submit()
        if detach:
            return DONE
        shipper = shipper_of_launcher(root.path, folder, plan.tracking, watch.say, on_cluster=True)
        follower = Follower(submission)
        with _OnSignals(follower.leave):
            states = follower.run(watch.update)
        watch.update()
    code = _concluded(plan, folder, root, states, console, shipper, ended=not follower.stopped)
    if follower.stopped:
        console.print(
            "left; the jobs go on. The same command follows them again, launch/cancel.py ends them", markup=False
        )
    return code


class _OnSignals:
    """Turn Ctrl-C and SIGTERM into a request while a sweep runs."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        def asked(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._act()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, asked)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _agreed(plan: Plan, root: Root, options: argparse.Namespace) -> bool:
    """Ask the one question, above 100 jobs or 10 GB; refuse what the disk cannot hold."""
    todo = plan.todo
    size = sum(stage.cost.bytes for stage in todo)
    there = next(folder for folder in (root.path, *root.path.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise ConfigError(
            f"the sweep may write {size / 1e9:.1f} GB, {root.path} has {free / 1e9:.1f} GB free (launch/runs.py du)"
        )
    if options.yes or (len(todo) <= ASK_ABOVE_JOBS and size <= ASK_ABOVE_BYTES):
        return True
    question = f"{len(todo)} stages to run, up to {size / 1e9:.1f} GB to write; go on? [y/N] "
    if not sys.stdin.isatty():
        raise ConfigError(f"{question.removesuffix('; go on? [y/N] ')}: say --yes")
    return input(question).strip().lower() in ("y", "yes")


def _concluded(  # noqa: PLR0913
    plan: Plan, folder: Path, root: Root, states: dict[str, str], console: Console, shipper: ShipperProcess | None,
    *, ended: bool,
) -> int:  # fmt: skip
    """Write results and report, print the summary; returns the exit code."""
    from kdscale.jobs.conclusion import conclude

    return DONE if conclude(plan, folder, root, states, console, shipper, ended=ended) else FAILED
