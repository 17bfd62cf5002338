"""Which stages make one array, which of them share a task, and what each array waits for.

stages of equal depth and resources -> one array, unless its tasks wait for different jobs:
  all wait for the same jobs          afterok:12:13
  each waits for one task of an array aftercorr:12        tasks are ordered as their parents are
  likewise, and all for others too    afterok:9,aftercorr:12
  anything else                       one array for each set of parents

With `resources.pack: n` a task is n of them, side by side, and waits for the parents of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["Again", "Group", "dependency", "groups"]


class Again(NamedTuple):
    """How a stage that failed in passing is to run again."""

    wait_s: float = 0.0
    without: tuple[str, ...] = ()
    """Nodes on which it has failed too often."""


AT_ONCE = Again()


class Task(NamedTuple):
    """What one task of an array runs side by side."""

    stages: list[PlannedStage]
    parents: frozenset[str]
    """Digests of what must be done before any of them."""


@dataclass
class Group:
    """Stages that are submitted together."""

    stages: list[PlannedStage]
    parents: list[frozenset[str]] = field(default_factory=list)
    """Of each stage: digests of the stages that must be done before, and are not."""
    again: Again = AT_ONCE

    @property
    def pack(self) -> int:
        """Most stages of a task."""
        return int(self.stages[0].definition["spec"].get("resources", {}).get("pack", 1))

    @property
    def tasks(self) -> list[Task]:
        """The array's tasks, in order."""
        starts = range(0, len(self.stages), self.pack)
        return [
            Task(self.stages[at : at + self.pack], frozenset().union(*self.parents[at : at + self.pack]))
            for at in starts
        ]

    def part(self, start: int, end: int) -> Group:
        """Some of the tasks."""
        chosen = slice(start * self.pack, end * self.pack)
        return Group(self.stages[chosen], self.parents[chosen], self.again)

    def halves(self) -> tuple[Group | None, Group]:
        """Two arrays in place of one; None and itself where there is but one task."""
        count = len(self.tasks)
        return (self.part(0, count // 2) if count > 1 else None), self.part(count // 2, count)

    @property
    def apart(self) -> list[frozenset[str]]:
        """Of each stage: what it must wait for and not all of them must."""
        return _without_shared(self.parents)

    def order_as(self, jobs: Mapping[str, str]) -> None:
        """Put stages that each wait for one task of an array into that array's order."""
        waits = [[_order(jobs[parent]) for parent in parents if parent in jobs] for parents in self.apart]
        if all(len(one) == 1 for one in waits):
            order = sorted(range(len(waits)), key=lambda index: waits[index])
            self.stages = [self.stages[index] for index in order]
            self.parents = [self.parents[index] for index in order]


def groups(
    plan: Plan, submit: Sequence[PlannedStage], done: frozenset[str], most: int,
    again: Mapping[str, Again] | None = None,
) -> Iterator[Group]:  # fmt: skip
    """Cut what is to be submitted into arrays, parents first.

    Args:
        plan: of the sweep.
        submit: its stages that are neither done nor queued.
        done: digests of the stages that need not be waited for.
        most: tasks that an array may have.
        again: how stages that failed in passing are to run.
    """
    kinds: dict[tuple[int, str, Again], Group] = {}
    first = plan.measured_first
    ancestors: dict[str, frozenset[str]] = {}
    for stage in submit:
        waits = {parent for parent, _ in stage.parents.values()}
        waits |= set() if stage.digest in first else first
        # a teacher's job waits for the data already: then each student waits for its own teacher, and for nothing else
        waits -= {far for near in waits - done for far in _ancestors(plan, near, ancestors)}
        how = (again or {}).get(stage.digest, AT_ONCE)
        group = kinds.setdefault((_depth(stage, first), _asks(stage), how), Group([], again=how))
        group.stages.append(stage)
        group.parents.append(frozenset(waits - done))
    for _, group in sorted(kinds.items(), key=lambda item: item[0]):
        for part in _by_parents(group):
            for start in range(0, len(part.tasks), most):
                yield part.part(start, start + most)


def dependency(group: Group, jobs: Mapping[str, str]) -> str | None:
    """What sbatch is told to wait for.

    Args:
        group: whose parents have all been submitted.
        jobs: job by stage; 12 or 12_3.
    """
    waited = [frozenset(jobs[parent] for parent in task.parents if parent in jobs) for task in group.tasks]
    own = _without_shared(waited)
    arrays = {job.partition("_")[0] for one in own for job in one}
    if len(arrays) == 1 and own == [{f"{next(iter(arrays))}_{index}"} for index in range(len(own))]:
        shared = sorted(waited[0] - own[0])
        return (f"afterok:{':'.join(shared)}," if shared else "") + f"aftercorr:{next(iter(arrays))}"
    everyone = list(dict.fromkeys(job for one in waited for job in sorted(one)))
    return "afterok:" + ":".join(everyone) if everyone else None


def _without_shared(waited: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Each without what all wait for; one alone has nothing of its own."""
    shared = frozenset.intersection(*waited) if waited else frozenset()
    return [one - shared for one in waited]


def _ancestors(plan: Plan, digest: str, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """All that a stage takes from, near and far."""
    if digest not in known:
        parents = {parent for parent, _ in plan.stages[digest].parents.values()}
        known[digest] = frozenset(parents.union(*(_ancestors(plan, parent, known) for parent in parents)))
    return known[digest]


def _order(job: str) -> tuple[int, str]:
    """Tasks of an array by number, not by name."""
    array, _, task = job.partition("_")
    return int(task or 0), array


def _asks(stage: PlannedStage) -> str:
    spec = stage.definition["spec"]
    return repr(sorted(spec.get("resources", {}).items())) + repr(spec["engine"].get("processes", 1))


def _depth(stage: PlannedStage, first: set[str]) -> int:
    """Stages that wait for imported networks to be measured come after those."""
    return stage.depth if stage.digest in first or not first else stage.depth + 1000


def _by_parents(group: Group) -> Iterator[Group]:
    """Keep together what waits for the same, or for one another's own; else split."""
    apart = group.apart
    if len(set(apart)) == len(group.stages) and all(len(parents) == 1 for parents in apart):
        yield group
        return
    parts: dict[frozenset[str], Group] = {}
    for stage, parents in zip(group.stages, group.parents, strict=True):
        part = parts.setdefault(parents, Group([], again=group.again))
        part.stages.append(stage)
        part.parents.append(parents)
    yield from parts.values()
