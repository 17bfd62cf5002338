"""Which job each stage was handed in as: runs/jobs/<id>.json, written at submission and never changed."""

from __future__ import annotations

from typing import Any

from kdscale import atomic
from kdscale.pipeline.artifacts import Root

__all__ = ["jobs_of_stages", "submissions"]


def jobs_of_stages(root: Root) -> dict[str, str]:
    """The job that each stage was last submitted as, by digest."""
    return {note["digest"]: note["job"] for note in submissions(root)}


def submissions(root: Root) -> list[dict[str, Any]]:
    """All notes, the newest last."""
    notes = [atomic.read_json(path) for path in (root.path / "jobs").glob("*.json")]
    return sorted(filter(None, notes), key=lambda note: float(note["submitted"]))
