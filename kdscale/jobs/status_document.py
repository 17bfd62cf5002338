"""What the screen shows and all that it counts, as JSON: docs/status.md says what each entry is, and none changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kdscale.jobs.findings import Finding, quiet, troubles, waiting
from kdscale.jobs.overview import StageView, SweepView
from kdscale.jobs.siblings import slow
from kdscale.jobs.status_screen import next_command

__all__ = ["document"]


def document(view: SweepView, healed: Sequence[str] = ()) -> dict[str, Any]:
    """The whole document.

    Args:
        view: the sweep.
        healed: lines of what was set right before.
    """
    launcher = view.folder.launcher()
    return {
        "schema": 1, "sweep": view.name, "folder": str(view.folder.path), "digest": view.plan["digest"],
        "created": view.plan["created"], "command": view.plan["command"], "trials": len(view.plan["trials"]),
        "launcher": {"host": launcher["host"], "pid": launcher["pid"]} if launcher else None,
        "queue": _queue(view), "counts": dict(view.counts()), "hours_used": view.hours(),
        "seconds_left": view.seconds_left(), "over": view.over, "next_command": next_command(view) or None,
        "healed": list(healed), "troubles": _findings(troubles(view)), "quiet": _findings(quiet(view)),
        "slow": _findings(slow(view)), "waiting": _findings(waiting(view)),
        "stages": [_stage(view, stage) for stage in view.stages.values()],
    }  # fmt: skip


def _queue(view: SweepView) -> dict[str, Any] | None:
    """Whether the scheduler was asked; None where no stage is a job."""
    queue = view.queue
    if queue is None or not (queue.asked or queue.problem):
        return None
    return {"asked": queue.asked or None, "problem": queue.problem or None}


def _findings(found: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {"kind": one.kind, "words": one.words, "hint": one.hint or None, "stages": [s.name for s in one.stages]}
        for one in found
    ]


def _stage(view: SweepView, stage: StageView) -> dict[str, Any]:
    return {
        "name": stage.name, "stage": stage.entry["name"], "digest": stage.digest, "state": stage.status,
        "reason": stage.state.get("reason", ""), "step": stage.step, "steps": stage.steps,
        "unit": stage.unit.strip() or "steps",
        "epoch": stage.state.get("epoch"), "loss": stage.metric("train/loss"), "val_top1": stage.metric("val/top1"),
        "val_miou": stage.metric("val/miou"), "top1": stage.top1,
        "miou": (stage.state.get("results") or {}).get("miou"),
        "images_per_s": stage.images_per_s, "seconds_left": stage.seconds_left(),
        "seconds_used": stage.wall_s(), "reused": bool(stage.entry.get("reused")),
        "attempts": len(stage.state.get("attempts", [])), "host": (stage.holder or {}).get("host"),
        "waits_for": [parent.name for parent in view.waits_for(stage)], "job": _job(view, stage),
        "folder": str(stage.folder.path) if stage.folder else None,
    }  # fmt: skip


def _job(view: SweepView, stage: StageView) -> dict[str, Any] | None:
    """What the scheduler says of it; None where it has no such job, or could not be asked."""
    job = stage.job
    if job is None or view.queue is None:
        return None
    pending = stage.status == "queued"
    return {
        "id": job.id, "state": job.state, "nodes": job.nodes or None, "starts": job.starts,
        "reason": job.reason if pending else None, "waits_for": view.queue.waits_for(job) if pending else None,
    }  # fmt: skip
