"""Whether a stage's result lies on disk already, whole and made from exactly the same parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdscale.errors import CacheError
from kdscale.pipeline.artifacts import UNDER_WAY, Root, StageFolder
from kdscale.pipeline.cache_need import CacheNeed, part_of
from kdscale.pipeline.planned import FRESH, NEW, PlannedStage, Reuse

__all__ = ["judge", "judge_fill"]


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
    state = _state(folder)
    if forced:
        return Reuse(done=False, state=state, because=FRESH, replace=True)
    if state != "done":
        return Reuse(done=False, state=state, because=f"{state}, goes on from where it stopped")
    changed = _changed(found, folder, stage, parents)
    if changed:
        return Reuse(done=False, state=state, because=changed, replace=True)
    return Reuse(done=True, state="done", because=f"done ({folder.path})")


def _state(folder: StageFolder) -> str:
    """What a stage's folder says; lost, where it says that a process is at work which is gone."""
    state = str(folder.state().get("state", "waiting"))
    return "lost" if state in UNDER_WAY and folder.claimant() is None else state


def _changed(
    found: Mapping[str, StageFolder], folder: StageFolder, stage: PlannedStage, parents: Mapping[str, PlannedStage]
) -> str:
    """Why a finished stage cannot be taken as it is; empty when it can."""
    state = folder.state()
    for selector in stage.definition.get("keep", []):
        if selector not in state.get("weights", {}) and _reached(selector, state.get("results") or {}):
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


def _reached(selector: str, results: Mapping[str, Any]) -> bool:
    """Whether a finished stage came by a snapshot; one of an accuracy (acc:x) only where it got that far."""
    kind, _, value = selector.partition(":")
    return kind != "acc" or float(results.get("best_top1") or 0.0) >= float(value)


def judge_fill(stage: PlannedStage, root: Root, teacher: PlannedStage, *, forced: bool) -> Reuse:
    """Look for the records that a stage would fill: they alone say whether it is done, whoever made them.

    Args:
        stage: as planned.
        root: where caches are.
        teacher: its teacher, judged.
        forced: the user wants it made anew.
    """
    folder = root.stage(stage.digest)
    state = _state(folder) if folder is not None else "waiting"
    need = CacheNeed.of(stage.definition["need"])
    source = root.stage(need.teacher)
    weights = source.state().get("weights", {}).get(need.selector) if source is not None else None
    if not teacher.reuse.done or weights is None:
        return Reuse(done=False, state="waiting", because="not made yet", replace=state == "done")
    if forced:
        return Reuse(done=False, state=state, because=FRESH, replace=True)
    try:
        cache = root.cache(need.identity(weights))
    except CacheError as error:
        return Reuse(done=False, state=state, because=str(error), replace=state == "done")
    if cache is None:
        return Reuse(done=False, state=state, because="not made yet", replace=state == "done")
    first, last = part_of(need.views * cache.manifest.blocks_per_view, stage.definition["part"])
    missing = len(cache.missing(first, last)) if cache.manifest.views >= need.views else last - first
    if missing:
        because = f"{missing:,} of {last - first:,} blocks are to be filled"
        return Reuse(done=False, state=state, because=because, replace=state == "done")
    return Reuse(done=True, state="done", because=f"filled ({cache.path})")
