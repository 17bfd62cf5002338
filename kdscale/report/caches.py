"""What teacher caches saved: images that students read of them, against images that teachers were asked for.

Everything stands in the files of the sweep: plan.json says who reads which cache and how many images, the state of a
fill stage how many it computed and how fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from kdscale.report.records import StageRecord, SweepRecord
from kdscale.report.wording import count, duration, plural, times

__all__ = ["CacheSaving", "TeacherTime", "cache_facts", "cache_savings", "said_in_short", "teacher_times"]

MOST_NAMES = 4


@dataclass
class CacheSaving:
    """One cache of the sweep."""

    teacher: str
    entry: dict[str, Any]
    """As plan.json has it."""
    flops: float
    """Forward, one image, of the teacher."""
    fills: list[StageRecord] = field(default_factory=list)
    readers: list[StageRecord] = field(default_factory=list)
    """All students that have it as their teacher."""

    @property
    def holds(self) -> str:
        """Views and record, e.g. `8 views, dense, 20 B each`."""
        return f"{plural(self.entry['views'], 'view')}, {self.entry['record']}, {self.entry['record_bytes']} B each"

    @property
    def finished(self) -> list[StageRecord]:
        """Students that this sweep has trained by it."""
        return [student for student in self.readers if student.done and not student.reused]

    @property
    def read(self) -> int:
        """Images that they asked it for."""
        return sum(int(student.cost.get("images") or 0) for student in self.finished)

    @property
    def on_use(self) -> bool:
        """Whether those who read it fill it, of which no file says how much they did."""
        return not self.fills

    @property
    def computed(self) -> int:
        """Images that this sweep asked the teacher for to fill it; padding of the last blocks included."""
        return sum(_blocks(fill) * self.entry["block_rows"] for fill in self.fills if fill.done and not fill.reused)

    @property
    def share(self) -> float | None:
        """Images computed for each one read; None where nothing was filled, or it did not pay."""
        return self.computed / self.read if 0 < self.computed < self.read else None

    @property
    def rate(self) -> float | None:
        """Images a second while it was filled, over its parts; None where no file says it."""
        known = [fill.results for fill in self.fills if fill.results.get("images_per_s")]
        spent = sum(results["blocks"] / results["images_per_s"] for results in known)
        return sum(results["blocks"] for results in known) / spent if spent else None

    @property
    def bytes(self) -> int:
        """Of its records, once it is filled."""
        return sum(int(fill.results.get("bytes") or 0) for fill in self.fills)

    @property
    def title(self) -> str:
        """Whose answers it holds, and which."""
        return f"{self.teacher}: {self.holds}"

    def words(self) -> list[str]:
        """What it saved, in sentences; none before a student has read it."""
        if not self.read:
            return []
        if self.on_use:
            return [
                f"Students read {self.read:,} answers; it was filled by those who read it, "
                "so what was computed is not counted apart."
            ]
        if not self.computed:
            return [
                f"Nothing was filled in this sweep: students read {self.read:,} answers that were there already.",
                *self._spared(),
            ]
        if self.computed >= self.read:
            return [
                f"It did not pay: the teacher was asked for {self.computed:,} images to fill it, students read "
                f"{self.read:,}. Fewer views, or no cache, would have been cheaper; more students make it pay."
            ]
        return [
            f"The teacher was asked once for {self.computed:,} images in place of {self.read:,}: "
            f"{times(self.read / self.computed)} fewer.",
            *self._spared(),
        ]

    def _spared(self) -> list[str]:
        fewer = self.read - self.computed
        said = [f"{count(fewer * self.flops)}FLOP of the teacher were not computed."]
        if self.rate:
            spared = duration(fewer / self.rate)
            said.append(f"At the {self.rate:,.0f} images/s of filling{self._on()} that is {spared} of teacher time.")
        return said

    def _on(self) -> str:
        """What it was filled on, where all parts agree: seconds mean little without it."""
        on = {(a.get("world"), a.get("threads")) for fill in self.fills for a in fill.attempts[-1:]}
        processes, threads = next(iter(on)) if len(on) == 1 else (None, None)
        if not processes:
            return ""
        each = f", {plural(threads, 'thread')}{' each' if processes > 1 else ''}" if threads else ""
        return f" ({plural(processes, 'process').replace('processs', 'processes')}{each})"


@dataclass(frozen=True)
class TeacherTime:
    """What asking one teacher takes of a step, live and cached; medians over steps and stages, in seconds."""

    teacher: str
    live: float
    cached: float
    of_live: list[str]
    of_cached: list[str]


def cache_savings(sweep: SweepRecord) -> list[CacheSaving]:
    """Every cache that students of the sweep read, in the order of the plan."""
    found: dict[str, CacheSaving] = {}
    for stage in sweep.stages.values():
        for entry in stage.caches.values():
            teacher = sweep.stages[entry["teacher"]]
            flops = float(teacher.cost.get("flops") or 0)
            saving = found.setdefault(entry["need"], CacheSaving(sweep.local_name(teacher), entry, flops))
            saving.readers.append(stage)
            known = {fill.digest for fill in saving.fills}
            saving.fills += [sweep.stages[d] for d in entry["filled_by"] if d in sweep.stages and d not in known]
    return list(found.values())


def said_in_short(sweep: SweepRecord) -> str:
    """All caches in one line, for the end of a sweep; empty where none was read."""
    read = [saving for saving in cache_savings(sweep) if saving.read and not saving.on_use]
    if not read:
        return ""
    asked, computed = sum(saving.read for saving in read), sum(saving.computed for saving in read)
    head = "caches" if len(read) > 1 else "cache"
    if not computed:
        return f"{head}: students read {asked:,} teacher answers that were there already, none was computed"
    if computed >= asked:
        return f"{head}: did not pay: {computed:,} teacher images computed, {asked:,} read (see the report)"
    fewer = sum((saving.read - saving.computed) * saving.flops for saving in read)
    return f"{head}: {asked:,} teacher images read, {computed:,} computed: {times(asked / computed)} fewer, " + (
        f"{count(fewer)}FLOP saved"
    )


def cache_facts(sweep: SweepRecord) -> list[tuple[str, str]]:
    """Which students read which cache, for the provenance of their figures."""
    return [(f"cache of {saving.teacher}", _fact(sweep, saving)) for saving in cache_savings(sweep)]


def _fact(sweep: SweepRecord, saving: CacheSaving) -> str:
    names = [sweep.local_name(student) for student in saving.readers]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    held = f", {count(saving.bytes)}B in all" if saving.bytes else ""
    by = "" if saving.fills else " · filled on use"
    return f"{saving.holds}{held}{by} · read by {', '.join(names[:MOST_NAMES])}{more}"


def teacher_times(sweep: SweepRecord) -> list[TeacherTime]:
    """Teachers that some stages asked live and others through a cache."""
    live: dict[str, list[StageRecord]] = {}
    cached: dict[str, list[StageRecord]] = {}
    for stage in sweep.trained:
        teachers = sweep.teachers(stage)
        if len(teachers) == 1 and _teacher_s(stage):
            (cached if stage.caches else live).setdefault(teachers[0].digest, []).append(stage)
    return [
        TeacherTime(
            sweep.local_name(sweep.stages[digest]), _median(live[digest]), _median(cached[digest]),
            [sweep.local_name(s) for s in live[digest]], [sweep.local_name(s) for s in cached[digest]],
        )
        for digest in live.keys() & cached.keys()
    ]  # fmt: skip


def _median(stages: Sequence[StageRecord]) -> float:
    return median(value for stage in stages for value in _teacher_s(stage))


def _teacher_s(stage: StageRecord) -> list[float]:
    return [value for _, value in stage.curves.get("time/teacher_s", [])]


def _blocks(fill: StageRecord) -> int:
    """Blocks that a finished fill stage computed over all its attempts."""
    first = next(iter(fill.attempts), {}).get("resumed_from")
    if first is None:
        return int(fill.results.get("blocks") or 0)
    return int(fill.state.get("steps") or 0) - int(first)
