"""The folders of a plan's stages, and what a launcher may write there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kdscale.errors import StageHeld
from kdscale.pipeline.artifacts import NewStage, Root, StageFolder
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.planned import FRESH, Plan, PlannedStage
from kdscale.pipeline.profiles import Profiles

__all__ = ["note_cancelled", "note_state", "prepare_folders", "why_cancelled"]

RESUMED = frozenset({"blocked", "paused", "cancelled"})
"""States that the command which made them ends, when it is given again."""


def prepare_folders(root: Root, plan: Plan, *, retry_failed: bool, profile: bool = False) -> None:
    """Create or open each stage's folder and write down what it is; finished stages stay as they are.

    Args:
        root: of the runs.
        plan: whose stages are not all done.
        retry_failed: have those run again that failed by an error of their own.
        profile: ask every training stage that is not done for a profile of its steps.
    """
    old = root.stages_of(stage.digest for stage in plan.todo)
    for stage in plan.todo:
        if stage.kind == "fill" and stage.reuse.because == FRESH:
            _take_out_records(root, stage)
        if stage.reuse.replace and stage.digest in old and old[stage.digest].writable:
            old[stage.digest].take_out(f"made anew: {stage.reuse.because}")
    definitions = [stage.definition | {"sweep": plan.folder_name} for stage in plan.todo]
    wanted = [NewStage(stage.name, stage.digest, d) for stage, d in zip(plan.todo, definitions, strict=True)]
    for one, stage, (folder, new) in zip(wanted, plan.todo, root.create_stages(wanted), strict=True):
        if profile and stage.kind == "train":
            Profiles(folder.path).ask()
        if new:
            continue
        _define(folder, one.definition or {})
        if folder.claimant() is None:
            folder.clear_cancel()
            _make_wait(folder, retry_failed=retry_failed)


def _take_out_records(root: Root, stage: PlannedStage) -> None:
    """A fill stage is done as long as its records are there."""
    need = CacheNeed.of(stage.definition["need"])
    teacher = root.stage(need.teacher)
    if teacher is not None:
        root.take_out_cache(need.identity(teacher.state()["weights"][need.selector]))


def _define(folder: StageFolder, definition: Mapping[str, Any]) -> None:
    """Write stage.yaml; what earlier sweeps want kept stays."""
    known = folder.definition() if (folder.path / "stage.yaml").exists() else {}
    keep = sorted({*known.get("keep", []), *definition.get("keep", [])})
    folder.define({**definition, **({"keep": keep} if keep else {})})


def _make_wait(folder: StageFolder, *, retry_failed: bool) -> None:
    """A stage that rested is wanted again; one that waits already is not written twice."""
    now = folder.state()
    state = now["state"]
    if (state == "waiting" and now["reason"]) or state in RESUMED or (state == "failed" and retry_failed):
        note_state(folder, "waiting", "")


def note_state(folder: StageFolder, state: str, reason: str) -> None:
    """Write a state, unless another launcher's workers have the stage by now: then it is theirs to write."""
    with suppress(StageHeld):
        folder.write_state(state=state, reason=reason)


def why_cancelled(folder: StageFolder) -> str:
    """The reason that was given with the wish that a stage be not run."""
    return str((folder.cancel_request() or {}).get("reason") or "cancelled by its user")


def note_cancelled(folder: StageFolder) -> None:
    """Write that a stage is cancelled, and why."""
    note_state(folder, "cancelled", why_cancelled(folder))
