"""What the teacher caches of a plan will cost and spare, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.jobs.wording import size
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.cost import Cost, fill_cost, training_rows
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["PlannedCache", "caches_of", "cost_of_filling"]


@dataclass
class PlannedCache:
    """One cache: who fills it and who reads it, of the stages that are still to run."""

    need: CacheNeed
    teacher: PlannedStage
    fills: list[PlannedStage] = field(default_factory=list)
    """Stages that fill it, or parts of it, done or not."""
    readers: list[tuple[PlannedStage, str]] = field(default_factory=list)
    """Students that are to run, with what each calls the teacher."""
    on_use: Cost = field(default_factory=Cost)
    """Of filling it by those who read it, where no stage does; what is there already is not known here."""

    @property
    def name(self) -> str:
        """As the stages are called that fill it, without the number of a part; or who fills it."""
        return f"{self.teacher.name}-cache" + ("" if self.fills else " filled on use")

    @property
    def waiting(self) -> list[PlannedStage]:
        """Stages that are still to fill it."""
        return [fill for fill in self.fills if not fill.reuse.done]

    @property
    def to_fill(self) -> int:
        """Images that the teacher will be asked for."""
        return sum(fill.cost.images for fill in self.waiting) + self.on_use.images

    @property
    def to_read(self) -> int:
        """Images that students will ask the cache for."""
        return sum(student.cost.images for student, _ in self.readers)

    @property
    def flops(self) -> int:
        """Of filling it."""
        return sum(fill.cost.train_flops for fill in self.waiting) + self.on_use.train_flops

    @property
    def holds(self) -> str:
        """Its views and bytes, e.g. `8 views, 4.1 GB`."""
        filled = sum(fill.cost.bytes for fill in self.fills) or self.on_use.bytes
        return f"{self.need.views} view{'s' * (self.need.views != 1)}, {size(float(filled))}"

    @property
    def pays(self) -> bool:
        """Whether students ask it for more than filling it asks the teacher for."""
        return self.to_fill < self.to_read

    def verdict(self) -> str:
        """When it pays, for the line of totals; empty where nothing is to be filled, or nothing read."""
        if not self.to_fill or not self.readers or not self.pays:
            return ""
        student = self.readers[0][0]
        epochs = self.to_fill // (student.cost.images // student.cost.epochs)
        plural = "s" * (self.need.views != 1), "s" * (epochs != 1)
        return f"{self.need.views} view{plural[0]}: it pays after {epochs} student-epoch{plural[1]}"

    def complaint(self) -> str:
        """That it does not pay, and what would mend it; empty where it does."""
        if not self.to_fill or not self.readers or self.pays:
            return ""
        student, role = self.readers[0]
        key = f"stages.{student.name}.teachers.{role}.cache"
        most = -(-self.to_read * self.need.views // self.to_fill) - 1
        fewer = f"set {key}.views to {most} at most, or " if most else ""
        return (
            f"{self.name} ({self.holds}) does not pay: the teacher is asked for {self.to_fill:,} images to fill it, "
            f"{self.to_read:,} would answer its students: {fewer}leave {key} out"
        )


def caches_of(plan: Plan) -> list[PlannedCache]:
    """Every cache that a stage of the plan fills or reads."""
    found: dict[str, PlannedCache] = {}

    def cache(need: dict[str, Any]) -> PlannedCache:
        known = CacheNeed.of(need)
        return found.setdefault(json.dumps(need, sort_keys=True), PlannedCache(known, plan.stages[known.teacher]))

    for stage in plan.stages.values():
        if stage.kind == "fill":
            cache(stage.definition["need"]).fills.append(stage)
    for stage, role, need in _readings(plan):
        own = cache(need)
        own.readers.append((stage, role))
        if not own.fills:
            own.on_use = cost_of_filling(own.need, own.teacher, stage)[1]
    return list(found.values())


def _readings(plan: Plan) -> Iterator[tuple[PlannedStage, str, dict[str, Any]]]:
    for stage in plan.todo:
        for role, entry in stage.definition.get("caches", {}).items():
            yield stage, role, entry["need"]


def cost_of_filling(need: CacheNeed, teacher: PlannedStage, student: PlannedStage) -> tuple[int, Cost]:
    """Rows of a view, and the cost of filling a cache whole, as if nothing of it were there.

    Args:
        need: what it must hold.
        teacher: whose answers.
        student: any that reads it.
    """
    spec = StageSpec.model_validate(student.definition["spec"])
    whole = spec.model_copy(update={"data": spec.data.model_copy(update={"limit": need.limit})})
    rows = training_rows(whole, DatasetInfo.of(student.definition["data"]["info"]))
    return rows, fill_cost(rows, need.views, need.block_rows, need.layout.record_bytes, teacher.cost.flops, 1)
