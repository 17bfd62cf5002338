"""Run a plan in this very process, one stage after the other: for debuggers and smoke runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from kdscale import atomic
from kdscale.errors import KDScaleError, StageHeld
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.machine import threads_of
from kdscale.pipeline.planned import Plan, PlannedStage
from kdscale.report.rating import said
from kdscale.train.convert import run_conversion
from kdscale.train.fill_cache import run_fill
from kdscale.train.measure import run_measurement
from kdscale.train.stage import run_stage
from kdscale.train.stop import Stop

__all__ = ["run_inline", "run_one"]


def run_inline(root: Root, plan: Plan, say: Callable[[str], None]) -> dict[str, str]:
    """Run every stage that is not done; returns each stage's final state by digest.

    An exception that is not kdscale's own passes through, so that a debugger sees it where it happened.
    """
    states = {digest: "done" for digest, stage in plan.stages.items() if stage.reuse.done}
    stop = Stop()

    def asked(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.ask("asked to stop by its user")

    old = signal.signal(signal.SIGINT, asked)
    # as a worker of one process has: the same sums, the same bits
    torch.set_num_threads(threads_of(1, plan.limits.get("parallel")))
    try:
        first = plan.measured_first
        for stage in sorted(plan.todo, key=lambda stage: stage.digest not in first):
            if any(states.get(parent) != "done" for parent, _ in stage.parents.values()):
                states[stage.digest] = "blocked"
                continue
            say(f"{stage.name} ({stage.model})")
            states[stage.digest] = run_one(root, stage, stop)
            say(f"  {states[stage.digest]}: {_headline(root, stage)}")
            if states[stage.digest] == "interrupted":
                break
    finally:
        signal.signal(signal.SIGINT, old)
    return states


def run_one(root: Root, stage: PlannedStage, stop: Stop) -> str:
    """Run one stage here; returns its state."""
    folder = root.stage(stage.digest)
    assert folder is not None
    try:
        done = _RUNNERS[stage.kind](root.path, stage.digest, stop)
        outcome = "done" if done else "interrupted"
    except StageHeld:
        raise
    except KDScaleError as error:
        outcome = "paused" if atomic.is_disk_full(error) else "failed"
        folder.write_state(state=outcome, reason=str(error))
    return outcome


_RUNNERS: dict[str, Callable[[Path, str, Stop], bool]] = {
    "convert": run_conversion, "fill": run_fill, "evaluate": run_measurement,
    "train": lambda root, digest, stop: run_stage(root, digest, stop) == "done",
}  # fmt: skip


def _headline(root: Root, stage: PlannedStage) -> str:
    folder = root.stage(stage.digest)
    state = folder.state() if folder else {}
    found = said(state.get("results", {}))
    return f"{found} on test" if found else str(state.get("reason", ""))
