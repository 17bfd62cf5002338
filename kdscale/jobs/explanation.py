"""`--explain`: for each stage, whether it is reused, and if not, which key makes it another stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdscale.config.digest import identity
from kdscale.config.explain import Difference, default_of, nearest
from kdscale.config.load import Sweep
from kdscale.config.schema import StageSpec
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.planned import NEW, Plan, PlannedStage

__all__ = ["explain_screen"]

SHOWN = 4
"""Differing keys shown a stage."""


def explain_screen(plan: Plan, sweep: Sweep, root: Root) -> RenderableType:
    """The table of reasons, and a warning where one key retrains more than was probably meant."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "name", "verdict", "because"):
        table.add_column(title, overflow="fold")
    finished = _finished(root)
    reasons: dict[str, list[Difference]] = {}
    for digest, stage in plan.stages.items():
        because, found = _because(plan, stage, sweep, finished)
        reasons[digest] = found
        table.add_row(stage.name, digest[:6], _verdict(stage, refilled=bool(found)), because)
    return Group(table, *(Text(f"! {line}") for line in _warnings(plan, reasons)))


def _verdict(stage: PlannedStage, *, refilled: bool) -> str:
    if stage.reuse.done:
        return "reused" if stage.reuse.state == "done" else "not needed"
    if stage.kind == "fill" and stage.reuse.state == "waiting" and refilled:
        return "refill"
    return {"waiting": "new", "done": "made anew"}.get(stage.reuse.state, "goes on")


def _because(
    plan: Plan, stage: PlannedStage, sweep: Sweep, finished: dict[str, list[tuple[StageFolder, dict[str, Any]]]]
) -> tuple[str, list[Difference]]:
    if stage.reuse.done or stage.reuse.state != "waiting":
        return stage.reuse.because, []
    if stage.kind == "fill":
        return _because_filled(plan, stage, finished)
    own = identity(StageSpec.model_validate(stage.definition["spec"])) if stage.kind == "train" else {}
    candidates = [(folder, known) for folder, known in finished.get(stage.name, [])]
    near = nearest(candidates, own)
    upstream = [plan.stages[d].name for d, _ in stage.parents.values() if not plan.stages[d].reuse.done]
    if near is None or stage.kind != "train":
        return "never made before" + (f"; takes from {', '.join(upstream)}" if upstream else ""), []
    folder, found = near
    keys = [_change(one, stage, sweep) for one in found[:SHOWN]] + (["..."] if len(found) > SHOWN else [])
    if upstream:
        keys.append(f"takes from {', '.join(upstream)}")
    if not keys:
        keys.append("its data, a plug-in's revision or kdscale's own numerics changed")
    return f"{'; '.join(keys)}   nearest: {folder.path.name}", found


def _because_filled(
    plan: Plan, stage: PlannedStage, finished: dict[str, list[tuple[StageFolder, dict[str, Any]]]]
) -> tuple[str, list[Difference]]:
    """Why a cache is to be filled: nothing like it is there, or what its records are made from changed."""
    near = nearest(finished.get(stage.name, []), _held(stage.definition["need"]))
    if near is None or not near[1]:
        upstream = [plan.stages[d].name for d, _ in stage.parents.values() if not plan.stages[d].reuse.done]
        known = "never filled before" if stage.reuse.because == NEW.because else stage.reuse.because
        return known + (f"; asks {', '.join(upstream)}" if upstream else ""), []
    folder, found = near
    keys = [
        f"{key} changed" if key in ("teacher", "data.fingerprint") else f"{key} {was} -> {now}"
        for key, was, now in found[:SHOWN]
    ]  # fmt: skip
    return f"{'; '.join(keys)}   nearest: {folder.path.name}", found


def _held(need: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache holds, without what follows from the rest."""
    layout = {key: value for key, value in need["layout"].items() if key not in ("fields", "record_bytes")}
    kept = {key: value for key, value in need.items() if key not in ("layout", "shard_mb")}
    return kept | {"record": layout}


def _change(one: Difference, stage: PlannedStage, sweep: Sweep) -> str:
    key, was, now = one
    place = sweep.sources.get(f"stages.{stage.name}.{key}") or sweep.sources.get(key)
    said = f"{key} {_short(key, was)} -> {_short(key, now)}"
    return f"{said} ({place})" if place else said


def _short(key: str, value: Any) -> str:
    if value is not None:
        return str(value)
    default = default_of(key)
    return "default" if default is None or isinstance(default, (dict, BaseModel)) else f"{default} (default)"


def _finished(root: Root) -> dict[str, list[tuple[StageFolder, dict[str, Any]]]]:
    """Identities of all finished training stages, and what finished fills hold, by name."""
    found: dict[str, list[tuple[StageFolder, dict[str, Any]]]] = {}
    for folder in root.stages():
        if folder.state().get("state") != "done":
            continue
        definition = folder.definition()
        if definition["kind"] == "fill":
            found.setdefault(folder.name, []).append((folder, _held(definition["need"])))
        if definition["kind"] == "train":
            with suppress(ValidationError):  # of another version of kdscale: nothing to compare with
                spec = StageSpec.model_validate(definition["spec"])
                found.setdefault(folder.name, []).append((folder, identity(spec)))
    return found


def _warnings(plan: Plan, reasons: dict[str, list[Difference]]) -> Sequence[str]:
    """A key of the top level reaches every stage: say so where it retrains a stage that others learn from."""
    learning = [stage for stage in plan.stages.values() if stage.kind != "evaluate"]
    producers = {d for stage in learning for d, _ in stage.parents.values()}
    last = next((stage.name for stage in reversed(learning) if stage.digest not in producers), "")
    retrained: dict[tuple[str, str], list[PlannedStage]] = {}
    for digest, found in reasons.items():
        stage = plan.stages[digest]
        if digest in producers and found and stage.kind == "train" and found[0][0].startswith(("train.", "data.")):
            retrained.setdefault((found[0][0], str(found[0][2])), []).append(stage)
    return [
        f"this also retrains {', '.join(dict.fromkeys(s.name for s in stages))} "
        f"({sum(s.cost.train_flops for s in stages) / 1e12:,.1f} TFLOPs). "
        f"To change {last} only: stages.{last}.{key}={now}"
        for (key, now), stages in retrained.items()
    ]
