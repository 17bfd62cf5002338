"""Which job each stage was handed in as: runs/jobs/<id>.json, one for an array, written once at submission."""

from __future__ import annotations

from typing import Any

from kdscale import atomic
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["jobs_of_stages", "stage_of", "submissions"]


def jobs_of_stages(root: Root) -> dict[str, str]:
    """The job that each stage was last submitted as, by digest."""
    return {note["digest"]: note["job"] for note in submissions(root)}


def submissions(root: Root) -> list[dict[str, Any]]:
    """All tasks that were ever handed in, the newest last: job, digest, stage, sweep, submitted, waits_for."""
    notes = [atomic.read_json(path) for path in (root.path / "jobs").glob("*.json")]
    in_order = sorted(filter(None, notes), key=lambda note: float(note["submitted"]))
    return [{**note, **task} for note in in_order for task in note["tasks"]]


def stage_of(root: Root, job: str) -> StageFolder | None:
    """The stage that a job or a task of an array was handed in for; None where nobody noted it."""
    note = atomic.read_json(root.path / "jobs" / f"{job.partition('_')[0]}.json")
    digests = [task["digest"] for task in note["tasks"] if task["job"] == job] if note is not None else []
    return root.stage(digests[0]) if digests else None
