"""What `launch/cache.py plan` prints: for each cache what it holds, costs and needs, and whether it pays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from kdscale.jobs.cache_info import record_phrase
from kdscale.jobs.cache_plan import Forecast, Student
from kdscale.jobs.wording import duration, size

__all__ = ["lines_of", "show_caches", "verdict"]

LISTED = 6
SHORT = 6


def show_caches(caches: Sequence[Forecast], sweep: str, console: Console, *, as_json: bool) -> None:
    """Print the caches of a plan."""
    if as_json:
        document = {"schema": 1, "sweep": sweep, "caches": [cache.document() for cache in caches]}
        console.print(json.dumps(document), markup=False, highlight=False, soft_wrap=True)
        return
    if not caches:
        say = "no student of this plan reads a cache; teachers: {t: {from: teacher, cache: {views: 8}}} makes one do so"
        console.print(Text(f"{sweep}: {say}"), soft_wrap=True)
    for cache in caches:
        for label, text in lines_of(cache):
            console.print(Text(f"{label:<10}", style="dim").append(text, style="not dim"), soft_wrap=True)
        console.print()


def lines_of(cache: Forecast) -> Iterator[tuple[str, str]]:
    """Label and text of each line about a cache."""
    need, layout, cost = cache.need, cache.need.layout, cache.cost
    yield (
        "cache",
        f"of {cache.teacher} {need.teacher[:SHORT]} ({cache.model}): {need.views} views x {cache.rows:,} rows",
    )
    yield (
        "record",
        f"{record_phrase(layout)}   beside {4 + 4 * cache.tinyvit_k} B of TinyViT's with K={cache.tinyvit_k}, "
        f"{2 * layout.classes} B of dense fp16",
    )
    yield "on disk", f"{size(cost.bytes)} in {cost.steps:,} blocks; {_present(cache)}"
    yield "filling", _filling(cache)
    yield "reading", _reading(cache)
    yield "students", _students(cache.students)
    yield "pays", verdict(cache)


def verdict(cache: Forecast) -> str:
    """Whether a cache pays, and what would make it."""
    views, epochs = cache.need.views, cache.epochs
    flops = f"{_tflops(cache.cost.train_flops)} TFLOPs with it, {_tflops(cache.live_flops)} without"
    if cache.pays:
        return f"{_sum(cache.students)} > {views} views: pays, {epochs / views:.3g} x fewer teacher images; {flops}"
    compared = "=" if epochs == views else "<"
    said = "saves nothing" if epochs == views else "costs more than it saves"
    return f"{_sum(cache.students)} {compared} {views} views: does not pay, {said}; {flops}. {_mend(cache)}"


def _mend(cache: Forecast) -> str:
    views, epochs = cache.need.views, cache.epochs
    more = views // max(1, max(s.epochs for s in cache.students)) + 1
    wishes = [f"cache: {{views: {epochs - 1}}} or fewer"] if epochs > 1 else []
    wishes.append(f"more students or seeds that read it ({more} of {max(s.epochs for s in cache.students)} epochs)")
    return f"It would with {', or with '.join(wishes)}; else take `cache` out and ask the teacher live"


def _sum(students: Sequence[Student]) -> str:
    """`3 students x 10 epochs = 30`, or the sum where they differ."""
    counts = Counter(student.epochs for student in students)
    parts = [f"{n} student{'s' * (n > 1)} x {e} epoch{'s' * (e != 1)}" for e, n in sorted(counts.items())]
    return f"{' + '.join(parts)} = {sum(s.epochs for s in students)}"


def _present(cache: Forecast) -> str:
    if not cache.present:
        return "none of it is there"
    there = "all of it is" if cache.present == cache.cost.steps else f"{cache.present:,} of them are"
    return f"{there} there ({cache.place})"


def _filling(cache: Forecast) -> str:
    work = f"{cache.teacher_images:,} teacher forwards, {_tflops(cache.cost.train_flops)} TFLOPs"
    who = "by a stage of its own" if cache.fill == "stage" else "by the students, a view before its epoch"
    if cache.present == cache.cost.steps:
        return f"{work}: done"
    if cache.seconds is None or cache.rate is None:
        return f"{work}, {who}; no fill of this teacher was timed yet, so nobody knows how long"
    speed = f"{cache.rate.images_per_s:,.0f} images/s as {cache.rate.stage}"
    return f"{work}, {who}; {duration(cache.seconds)} for what is not there, at {speed}"


def _reading(cache: Forecast) -> str:
    """Bandwidth that students need; the fastest decides, where any was timed."""
    record = cache.need.layout.record_bytes
    rates = [student.rate for student in cache.students if student.rate is not None]
    if not rates:
        return f"{_megabytes(record * 1000)} MB/s for every 1,000 images/s of a student (none was timed yet)"
    best = max(rates, key=lambda rate: rate.images_per_s)
    needed = _megabytes(record * best.images_per_s)
    return f"{needed} MB/s a student, at {best.images_per_s:,.0f} images/s as {best.stage}"


def _students(students: Sequence[Student]) -> str:
    named = [f"{s.name} {s.digest[:SHORT]}{' (done)' if s.done else ''}" for s in students]
    return ", ".join(named[:LISTED]) + (f" and {len(named) - LISTED} more" if len(named) > LISTED else "")


def _tflops(count: int) -> str:
    return f"{count / 1e12:.3g}"


def _megabytes(count: int | float) -> str:
    return f"{count / 1e6:.3g}"
