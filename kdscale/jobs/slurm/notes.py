"""Which job each stage was handed in as: runs/jobs/<id>.json, one for an array, written once at submission."""

from __future__ import annotations

from typing import Any

from kdscale import atomic
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["jobs_of_stages", "stages_of", "submissions"]


def jobs_of_stages(root: Root) -> dict[str, str]:
    """The job that each stage was last submitted as, by digest."""
    return {note["digest"]: note["job"] for note in submissions(root)}


def submissions(root: Root) -> list[dict[str, Any]]:
    """All tasks that were ever handed in, the newest last: job, digest, stage, sweep, submitted, waits_for."""
    notes = [atomic.read_json(path) for path in (root.path / "jobs").glob("*.json")]
    in_order = sorted(filter(None, notes), key=lambda note: float(note["submitted"]))
    return [{**note, **task} for note in in_order for task in note["tasks"]]


def stages_of(root: Root, job: str) -> list[StageFolder]:
    """The stages that a job or a task of an array was handed in for; none where nobody noted it."""
    note = atomic.read_json(root.path / "jobs" / f"{job.partition('_')[0]}.json")
    digests = [task["digest"] for task in note["tasks"] if task["job"] == job] if note is not None else []
    return [folder for digest in digests if (folder := root.stage(digest)) is not None]
