"""Run what is planned and prepared, here or on a cluster, and say what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kdscale.jobs.conclusion import conclude
from kdscale.jobs.search import Search
from kdscale.jobs.search_drive import Drive, InlineRunner, Runner, outcome
from kdscale.jobs.shipping import shipper_of_launcher
from kdscale.jobs.signals import OnSignals
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.warm import WarmParent
from kdscale.jobs.watch import Watch
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan
from kdscale.trackers.shipping import ShipperProcess

__all__ = ["Launch", "run_inline", "run_local", "run_slurm"]

DONE, FAILED = 0, 1


@dataclass(frozen=True)
class Launch:
    """What runs, and where it is shown."""

    plan: Plan
    root: Root
    folder: Path
    console: Console
    search: Search | None

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def run(
        self, runner: Runner, update: Callable[[], None], grown: Callable[[], None], halt: Callable[[], None]
    ) -> dict[str, str]:
        """To the end; returns states by digest."""
        if self.search is None:
            return runner.run(update)
        return Drive(self.search, runner, update, grown, halt).run()


def run_inline(launch: Launch) -> int:
    """In this process; returns the exit code."""
    runner = InlineRunner(launch.root, launch.plan, launch.say)
    states = launch.run(runner, _nothing, _nothing, _nothing)
    return _conclude(launch, states, None, ended="interrupted" not in states.values())


def _nothing() -> None:
    return


def run_local(launch: Launch, warm: WarmParent) -> int:
    """Over worker processes of this machine; returns the exit code."""
    from kdscale.jobs.local import LocalRun

    root, plan = launch.root, launch.plan
    with Watch(launch.folder, launch.console) as watch:
        shipper = shipper_of_launcher(root.path, launch.folder, plan.tracking, watch.say, on_cluster=False)
        local = LocalRun(root, plan, watch.say, parallel=plan.limits.get("parallel"), warm=warm)
        with OnSignals(local.ask_to_stop):
            states = launch.run(local, watch.update, watch.look_at_plan, local.ask_to_stop)
        watch.update()
    code = _conclude(launch, states, shipper, ended=not local.stopped)
    if local.stopped:
        launch.say("stopped; the same command goes on from here")
    return code


def run_slurm(launch: Launch, profile: Profile, *, detach: bool) -> int:
    """As jobs, followed unless detached; returns the exit code."""
    from kdscale.jobs.slurm.follow import Follower
    from kdscale.jobs.slurm.submit import Submission

    root, plan = launch.root, launch.plan
    with Watch(launch.folder, launch.console) as watch:
        submission = Submission(root, plan, profile, watch.say)
        submission.submit()
        if detach:
            if launch.search is not None:
                watch.say(
                    "left; `launch/status.py --heal` (from cron, say) tells what trials came to and asks for more"
                )
            return DONE
        shipper = shipper_of_launcher(root.path, launch.folder, plan.tracking, watch.say, on_cluster=True)
        follower = Follower(submission)
        with OnSignals(follower.leave):
            states = launch.run(follower, watch.update, watch.look_at_plan, follower.leave)
        watch.update()
    code = _conclude(launch, states, shipper, ended=not follower.stopped)
    if follower.stopped:
        launch.say("left; the jobs go on. The same command follows them again, launch/cancel.py ends them")
    return code


def _conclude(launch: Launch, states: dict[str, str], shipper: ShipperProcess | None, *, ended: bool) -> int:
    """Write results, report and exports, and say where everything is; returns the exit code."""
    exported = conclude(launch.folder, launch.root.path, launch.console, shipper, ended=ended)
    if launch.search is not None:
        launch.say(f"{'search':9} {outcome(launch.search)}")
        return DONE if exported and launch.search.succeeded else FAILED
    done = all(states.get(digest) == "done" for digest in launch.plan.stages)
    return DONE if exported and done else FAILED
