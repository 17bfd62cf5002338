"""The folders of a plan's stages, and what a launcher may write there."""

from __future__ import annotations

from contextlib import suppress

from kdscale.errors import StageHeld
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.planned import Plan

__all__ = ["note_state", "prepare_folders"]


def prepare_folders(root: Root, plan: Plan, *, retry_failed: bool) -> None:
    """Create or open each stage's folder and write down what it is; finished stages stay as they are."""
    for stage in plan.todo:
        old = root.stage(stage.digest)
        if old is not None and old.writable and stage.reuse.replace:
            old.take_out(f"made anew: {stage.reuse.because}")
        folder = root.create_stage(stage.name, stage.digest)
        known = folder.definition() if (folder.path / "stage.yaml").exists() else {}
        keep = sorted({*known.get("keep", []), *stage.definition.get("keep", [])})
        folder.define(stage.definition | ({"keep": keep} if keep else {}) | {"sweep": plan.folder_name})
        state = folder.state().get("state", "waiting")
        if folder.claimant() is None:
            folder.clear_cancel()
            if state in ("blocked", "waiting", "paused", "cancelled") or (state == "failed" and retry_failed):
                note_state(folder, "waiting", "")


def note_state(folder: StageFolder, state: str, reason: str) -> None:
    """Write a state, unless another launcher's workers have the stage by now: then it is theirs to write."""
    with suppress(StageHeld):
        folder.write_state(state=state, reason=reason)
