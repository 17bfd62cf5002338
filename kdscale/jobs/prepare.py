"""The folders of a plan's stages, and what a launcher may write there."""

from __future__ import annotations

from contextlib import suppress

from kdscale.errors import StageHeld
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["note_state", "prepare_folders"]

RESUMED = frozenset({"blocked", "paused", "cancelled"})
"""States that the command which made them ends, when it is given again."""


def prepare_folders(root: Root, plan: Plan, *, retry_failed: bool) -> None:
    """Create or open each stage's folder and write down what it is; finished stages stay as they are."""
    old = root.stages_of(stage.digest for stage in plan.todo)
    for stage in plan.todo:
        if stage.reuse.replace and stage.digest in old and old[stage.digest].writable:
            old[stage.digest].take_out(f"made anew: {stage.reuse.because}")
    folders = root.create_stages([(stage.name, stage.digest) for stage in plan.todo])
    for stage, folder in zip(plan.todo, folders, strict=True):
        _define(folder, stage, plan.folder_name)
        if folder.claimant() is None:
            folder.clear_cancel()
            _make_wait(folder, retry_failed=retry_failed)


def _define(folder: StageFolder, stage: PlannedStage, sweep: str) -> None:
    """Write stage.yaml; what earlier sweeps want kept stays."""
    known = folder.definition() if (folder.path / "stage.yaml").exists() else {}
    keep = sorted({*known.get("keep", []), *stage.definition.get("keep", [])})
    folder.define(stage.definition | ({"keep": keep} if keep else {}) | {"sweep": sweep})


def _make_wait(folder: StageFolder, *, retry_failed: bool) -> None:
    """A stage that rested is wanted again; one that waits as it was made is not written twice."""
    now = folder.state()
    state = now["state"]
    if (state == "waiting" and now["reason"]) or state in RESUMED or (state == "failed" and retry_failed):
        note_state(folder, "waiting", "")


def note_state(folder: StageFolder, state: str, reason: str) -> None:
    """Write a state, unless another launcher's workers have the stage by now: then it is theirs to write."""
    with suppress(StageHeld):
        folder.write_state(state=state, reason=reason)
