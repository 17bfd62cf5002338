"""Run what is planned and prepared, here or on a cluster, and say what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kdscale.jobs.search import Search
from kdscale.jobs.search_drive import Drive, InlineRunner, Runner, outcome
from kdscale.jobs.shipping import shipper_of_launcher
from kdscale.jobs.signals import OnSignals
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.warm import WarmParent
from kdscale.jobs.watch import Watch
from kdscale.jobs.wording import interpreter
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
    return _conclude(launch, launch.run(runner, _nothing, _nothing, _nothing), None)


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
    code = _conclude(launch, states, shipper)
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
    code = _conclude(launch, states, shipper)
    if follower.stopped:
        launch.say("left; the jobs go on. The same command follows them again, launch/cancel.py ends them")
    return code


def _conclude(launch: Launch, states: dict[str, str], shipper: ShipperProcess | None) -> int:
    """Write results and report, print the summary, and say where everything is."""
    from kdscale.report.page import write_report
    from kdscale.report.results import write_results
    from kdscale.report.tables import summary

    write_results(launch.folder)
    page = write_report(launch.folder)
    shipped = shipper.finish(timeout_s=60.0) if shipper is not None else {}  # now that there is a report to ship
    launch.console.print()
    launch.console.print(summary(launch.folder))
    paths = {"report": page, "results": launch.folder / "results.json"}
    for what, path in paths.items():
        launch.say(f"{what:9} {path}")
    if shipped:
        launch.say(f"{'tracking':9} {shipped.get('uri', '')}")
        for problem in shipped.get("problems", []):
            launch.say(f"          {problem}")
        launch.say(f"{'look':9} {interpreter()} launch/track.py ui --runs {launch.root.path}")
    if launch.search is not None:
        launch.say(f"{'search':9} {outcome(launch.search)}")
        return DONE if launch.search.succeeded else FAILED
    unfinished = [d for d in launch.plan.stages if states.get(d) != "done"]
    return FAILED if unfinished else DONE
