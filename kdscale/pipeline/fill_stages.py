"""The stages that fill teacher caches: one for each cache that a plan's students read, or one for each part of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdscale.api import DatasetInfo
from kdscale.config.schema import CacheConfig, StageSpec
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.cost import fill_cost, training_rows
from kdscale.pipeline.planned import PlannedStage, Reuse
from kdscale.pipeline.reuse import judge_fill

__all__ = ["Reading", "fill_name", "with_fills"]


@dataclass(frozen=True)
class Reading:
    """One cached teacher of one student."""

    student: str
    """Digest."""
    role: str
    need: CacheNeed
    config: CacheConfig
    spec: StageSpec
    """Of the student."""


NOT_READ = Reuse(done=True, because="all that read it are done")


def with_fills(
    stages: Mapping[str, PlannedStage], readings: Sequence[Reading], root: Root, fresh: Sequence[str]
) -> dict[str, PlannedStage]:
    """Add the stages that fill what students read, judged; students then wait for them.

    Args:
        stages: all others, judged.
        readings: every cached teacher of every student among them.
        root: where caches are.
        fresh: names of stages that are made anew even where done.
    """
    found = dict(stages)
    known = [manifest.identity for manifest in root.manifests()] if readings else []
    groups: dict[str, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.need.shared, []).append(reading)
    for group in groups.values():
        waiting = [reading for reading in group if not stages[reading.student].reuse.done]
        need = _united(waiting or group, known)
        filling = [reading for reading in group if reading.config.fill == "stage"]
        parts = max((reading.config.parts for reading in filling), default=0)
        fills = [_stage(need, filling[0], stages, (number, parts)) for number in range(parts)]
        forced = not {fill_name(stages[need.teacher]), *(fill.name for fill in fills)}.isdisjoint(fresh)
        for fill in fills:
            verdict = judge_fill(fill, root, stages[need.teacher], forced=forced)
            wanted = waiting or verdict.done or forced
            found[fill.digest] = replace(fill, reuse=verdict if wanted else NOT_READ)
        for reading in group:
            own = fills if reading.config.fill == "stage" else []
            found[reading.student] = _reading(found[reading.student], reading.role, need, own)
    return found


def fill_name(teacher: PlannedStage) -> str:
    """What the stage that fills a teacher's cache is called."""
    return f"{teacher.name}-cache"


def _reading(
    student: PlannedStage, role: str, need: CacheNeed, fills: Sequence[PlannedStage]
) -> PlannedStage:  # fmt: skip
    """A student that knows its cache, and waits for those who fill it."""
    roles = [f"cache:{role}" + (f".{number}" if number else "") for number in range(len(fills))]
    parents = student.parents | {name: (fill.digest, "cache") for name, fill in zip(roles, fills, strict=True)}
    cache = {"need": need.document(), "filled_by": [fill.digest for fill in fills]}
    caches = student.definition.get("caches", {}) | {role: cache}
    return replace(student, parents=parents, definition=student.definition | {"caches": caches})


def _united(group: Sequence[Reading], existing: Sequence[Mapping[str, Any]]) -> CacheNeed:
    need = group[0].need
    for reading in group[1:]:
        need = need.united(reading.need)
    return next((larger for known in existing if (larger := _larger(need, known)) is not None), need)


def _larger(need: CacheNeed, known: Mapping[str, Any]) -> CacheNeed | None:
    """The need as a cache on disk would serve it, with what it holds besides; None where it does not."""
    try:
        weights, split, record = known["teacher"]["weights"], known["data"]["split"], known["record"]
        kind, temperatures = record["kind"], tuple(record["temperatures"])
    except (KeyError, TypeError):
        return None
    if kind != need.layout.kind:  # whose temperatures may be none that this kind can have
        return None
    layout = replace(need.layout, temperatures=temperatures)
    grown = replace(need, layout=layout, data={**need.data, "split": dict(split)})
    if grown.shared != need.shared or grown.united(need) != grown or grown.identity(weights) != dict(known):
        return None
    return grown


def _stage(
    need: CacheNeed, reading: Reading, stages: Mapping[str, PlannedStage], part: tuple[int, int]
) -> PlannedStage:
    teacher, student = stages[need.teacher], stages[reading.student]
    known = StageSpec.model_validate(teacher.definition["spec"])
    data = reading.spec.data.model_copy(update={"limit": need.limit})
    name = fill_name(teacher) + (f"-{part[0] + 1}of{part[1]}" if part[1] > 1 else "")
    spec = StageSpec(
        name=name, student=known.student, data=data, resources=known.resources, engine=_engine(known),
        plugins=known.plugins, tracking=reading.spec.tracking,
    )  # fmt: skip
    what = {"kind": "fill", "cache": replace(need, shard_mb=0).document(), "part": part}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    definition = {
        "schema": 1, "kind": "fill", "digest": digest, "name": name,
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"name": name},
        "parents": {"teacher": {"digest": need.teacher, "selector": need.selector}},
        "data": student.definition["data"], "need": need.document(), "part": list(part), "model": teacher.model,
    }  # fmt: skip
    info = DatasetInfo.of(student.definition["data"]["info"])
    rows = training_rows(spec, info)
    cost = fill_cost(rows, need.views, need.block_rows, need.layout.record_bytes, teacher.cost.flops, part[1])
    parents = {"teacher": (need.teacher, need.selector), "data": student.parents["data"]}
    return PlannedStage(digest, name, "fill", parents, 0, f"{teacher.model}: {_phrase(need)}", cost, definition)


def _engine(teacher: StageSpec) -> Any:
    """The teacher's number of processes; a network that only answers needs no engine's sharding."""
    return type(teacher.engine)(processes=teacher.engine.processes)


def _phrase(need: CacheNeed) -> str:
    """What a cache holds, in a few words."""
    return f"{need.views} view{'s' * (need.views != 1)}, {need.record}, {need.layout.record_bytes} B each"
