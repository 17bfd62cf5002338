"""What each cache of a plan would hold, cost and save, before anything is made.

A cache of n views is filled with n teacher images a row, whoever reads it; live, the teacher is asked once a row and
epoch by every student. So it saves work iff n is less than the sum of the students' epochs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from kdscale.errors import CacheError, StageError
from kdscale.jobs.planned_caches import cost_of_filling
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.cost import Cost
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["Forecast", "Rate", "Student", "caches_of_plan"]

TINYVIT_K = 10
"""Classes that TinyViT keeps for ImageNet-1k; what a dense record is compared with."""


class Rate(NamedTuple):
    """How fast something went before."""

    images_per_s: float
    stage: str
    """That measured it: the name of its folder."""


@dataclass(frozen=True)
class Student:
    """A student that reads a cache."""

    name: str
    digest: str
    epochs: int
    done: bool
    live_flops: int
    """That asking the teacher itself would have taken."""
    rate: Rate | None


@dataclass(frozen=True)
class Forecast:
    """One cache of a plan: what it would hold, cost and save."""

    teacher: str
    model: str
    need: CacheNeed
    rows: int
    cost: Cost
    """Of filling it whole."""
    present: int
    """Blocks of it that lie on disk."""
    place: str | None
    """Where; None before there is one."""
    students: list[Student]
    rate: Rate | None
    """Of the same teacher filling before."""
    fill: str
    """`stage` or `on_use`."""

    @property
    def epochs(self) -> int:
        """Of all students together."""
        return sum(student.epochs for student in self.students)

    @property
    def pays(self) -> bool:
        """Whether it takes fewer teacher images than asking live."""
        return self.need.views < self.epochs

    @property
    def teacher_images(self) -> int:
        """Teacher forwards that filling takes, padding of blocks included."""
        return self.cost.steps * self.need.block_rows

    @property
    def live_flops(self) -> int:
        """Of the teacher answering every student itself."""
        return sum(student.live_flops for student in self.students)

    @property
    def seconds(self) -> float | None:
        """To fill what is not there yet, at the rate of an earlier fill; None where none is known."""
        left = (self.cost.steps - self.present) * self.need.block_rows
        return None if self.rate is None else left / self.rate.images_per_s

    @property
    def tinyvit_k(self) -> int:
        """Classes a record of TinyViT's would keep for the comparison."""
        return self.need.layout.k or min(TINYVIT_K, self.need.layout.classes)

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        layout = self.need.layout
        record = {key: value for key, value in layout.document().items() if key != "fields"}
        return {
            "teacher": self.teacher, "teacher_digest": self.need.teacher, "model": self.model, "fill": self.fill,
            "record": record, "rows": self.rows, "views": self.need.views,
            "record_bytes": layout.record_bytes, "tinyvit_bytes": 4 + 4 * self.tinyvit_k,
            "dense_bytes": 2 * layout.classes, "bytes": self.cost.bytes, "blocks": self.cost.steps,
            "blocks_there": self.present, "path": self.place, "teacher_images": self.teacher_images,
            "fill_flops": self.cost.train_flops, "live_flops": self.live_flops, "seconds": self.seconds,
            "fill_rate": _rate_document(self.rate), "epochs": self.epochs, "pays": self.pays,
            "students": [asdict(s) | {"rate": _rate_document(s.rate)} for s in self.students],
        }  # fmt: skip


def caches_of_plan(plan: Plan, root: Root) -> list[Forecast]:
    """The caches that a plan's students would read, in the plan's order.

    Args:
        plan: as made; nothing of it needs to exist.
        root: where earlier results, and what is filled already, are looked for.
    """
    readers: dict[str, list[tuple[PlannedStage, str]]] = {}
    for stage in plan.stages.values():
        for role, entry in stage.definition.get("caches", {}).items():
            readers.setdefault(json.dumps(entry["need"], sort_keys=True), []).append((stage, role))
    measured = list(_measured(root)) if readers else []
    return [_planned(CacheNeed.of(json.loads(key)), mine, plan, root, measured) for key, mine in readers.items()]


def _planned(
    need: CacheNeed, readers: list[tuple[PlannedStage, str]], plan: Plan, root: Root, measured: list[_Measured]
) -> Forecast:
    teacher = plan.stages[need.teacher]
    rows, cost = cost_of_filling(need, teacher, readers[0][0])
    present, place = _there(need, root)
    students = {stage.digest: _student(stage, need, plan, measured) for stage, _ in readers}
    fills = any(stage.definition["caches"][role]["filled_by"] for stage, role in readers)
    return Forecast(
        teacher.name, teacher.model, need, rows, cost, present, place, list(students.values()),
        _fill_rate(need, measured), "stage" if fills else "on_use",
    )  # fmt: skip


def _student(stage: PlannedStage, need: CacheNeed, plan: Plan, measured: Iterable[_Measured]) -> Student:
    entries = stage.definition["caches"].values()
    forwards = [plan.stages[entry["need"]["teacher"]].cost.flops for entry in entries]
    own = plan.stages[need.teacher].cost.flops
    live = stage.cost.saved_flops * own // max(1, sum(forwards))
    return Student(
        stage.name, stage.digest, stage.cost.epochs, stage.reuse.done, live, _training_rate(stage, measured)
    )  # fmt: skip


def _there(need: CacheNeed, root: Root) -> tuple[int, str | None]:
    """Blocks of a cache that are there, and where it is."""
    teacher = root.stage(need.teacher)
    state = teacher.state() if teacher is not None else {}
    weights = state.get("weights", {}).get(need.selector) if state.get("state") == "done" else None
    if weights is not None:
        with suppress(CacheError):
            cache = root.cache(need.identity(weights))
            if cache is not None:
                wanted = min(need.views, cache.manifest.views) * cache.manifest.blocks_per_view
                return wanted - len(cache.missing(0, wanted)), str(cache.path)
    return 0, None


# --------------------------------------------------------------------------- what earlier runs tell


class _Measured(NamedTuple):
    """A finished stage that says how fast it was."""

    folder: StageFolder
    definition: Mapping[str, Any]
    images_per_s: float
    updated: float

    @property
    def rate(self) -> Rate:
        return Rate(self.images_per_s, self.folder.path.name)


def _measured(root: Root) -> Iterator[_Measured]:
    """Finished stages with their rates, the newest first."""
    found = []
    for folder in root.stages():
        with suppress(StageError, KeyError):
            state = folder.state()
            rate = (state.get("results") or {}).get("images_per_s")
            if state["state"] == "done" and rate:
                found.append(_Measured(folder, folder.definition(), float(rate), float(state["updated"])))
    yield from sorted(found, key=lambda one: -one.updated)


def _fill_rate(need: CacheNeed, measured: Iterable[_Measured]) -> Rate | None:
    """Of the newest fill stage of the same teacher."""
    fills = (m for m in measured if m.definition["kind"] == "fill" and m.definition["need"]["teacher"] == need.teacher)
    return next((one.rate for one in fills), None)


def _training_rate(stage: PlannedStage, measured: Iterable[_Measured]) -> Rate | None:
    """Of the same stage where it is done; else the fastest of those that train the same network at its size."""
    same = [
        m for m in measured if m.definition["kind"] == "train" and _network(m.definition) == _network(stage.definition)
    ]
    own = [one for one in same if one.folder.digest12 == stage.digest[:12]]
    best = max(own or same, key=lambda one: one.images_per_s, default=None)
    return best.rate if best is not None else None


def _network(definition: Mapping[str, Any]) -> tuple[Any, ...]:
    spec, info = definition["spec"], definition["data"]["info"]
    return spec["student"], spec.get("data", {}).get("size") or info["size"], info["channels"]


def _rate_document(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else rate._asdict()
