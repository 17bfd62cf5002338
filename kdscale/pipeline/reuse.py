"""Whether a stage's result lies on disk already, whole and made from exactly the same parents."""

from __future__ import annotations

from collections.abc import Mapping

from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.planned import NEW, PlannedStage, Reuse

__all__ = ["judge"]


def judge(
    found: Mapping[str, StageFolder], stage: PlannedStage, parents: Mapping[str, PlannedStage], *, forced: bool
) -> Reuse:
    """Look at a stage's folder.

    Args:
        found: the folders of all stages of the plan that have one, here or under the roots that may be reused.
        stage: as planned.
        parents: its parents, judged already.
        forced: the user wants it made anew.
    """
    folder = found.get(stage.digest)
    if folder is None:
        return NEW
    state = folder.state().get("state", "waiting")
    if forced:
        return Reuse(done=False, state=state, because="--fresh asks for it", replace=True)
    if state != "done":
        return Reuse(done=False, state=state, because=f"{state}, goes on from where it stopped")
    changed = _changed(found, folder, stage, parents)
    if changed:
        return Reuse(done=False, state=state, because=changed, replace=True)
    return Reuse(done=True, state="done", because=f"done ({folder.path})")


def _changed(
    found: Mapping[str, StageFolder], folder: StageFolder, stage: PlannedStage, parents: Mapping[str, PlannedStage]
) -> str:
    """Why a finished stage cannot be taken as it is; empty when it can."""
    state = folder.state()
    for selector in stage.definition.get("keep", []):
        if not selector.startswith("acc:") and selector not in state.get("weights", {}):
            return f"its snapshot {selector} was not kept"
    for role, used in state.get("consumed", {}).items():
        digest, selector = stage.parents[role]
        if not parents[digest].reuse.done:
            return f"{role} ({parents[digest].name}) is made anew"
        parent = found.get(digest)
        now = parent.state().get("weights", {}).get(selector) if parent else None
        if now != used:
            return f"{role} has other weights now than those it was made from"
    return ""
