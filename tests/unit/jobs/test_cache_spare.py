"""gc of caches: what somebody needs stays, whatever was asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdscale.jobs.cache_places import CachePlace, caches_of
from kdscale.jobs.cache_spare import Needs, Spare, free, spare
from kdscale.jobs.storage import LEFT_OVER_S, measure
from kdscale.pipeline.artifacts import Root, StageFolder

Of = Callable[[str], CachePlace]
DAY = 24 * 3600.0


def chosen(root: Root, **options: Any) -> list[Spare]:
    return spare(root, caches_of(root), Needs(root), **options)


def names(found: list[Spare]) -> set[str]:
    return {item.path.name for item in found}


def age(root: Root, place: CachePlace, days: float) -> None:
    """Make a cache look as if nothing had used it since."""
    then = time.time() - days * DAY
    for file in place.path.iterdir():
        os.utime(file, (then, then))
    for use in place.uses:
        path = use.stage.path / "state.json"
        path.write_text(path.read_text().replace('"updated": ', f'"updated": {then}, "before": '))


def student(place: CachePlace) -> StageFolder:
    return next(use.stage for use in place.uses if not use.fills)


def test_nothing_goes_unless_it_is_asked_for(caches: Root) -> None:
    assert chosen(caches) == []


def test_by_age_of_its_last_use(caches: Root, place: Of) -> None:
    age(caches, place("exact"), 40)
    age(caches, place("mixed"), 10)
    assert names(chosen(caches, older_s=30 * DAY)) == {place("exact").path.name}
    student(place("exact")).write_state(reason="looked at again")
    assert chosen(caches, older_s=30 * DAY) == [], "a student that reads it was touched since"


def test_until_the_rest_fits_the_largest_and_longest_unused_first(caches: Root, place: Of) -> None:
    sizes = {name: measure(place(name).path)[0] for name in ("exact", "sparse", "mixed")}
    for name, days in (("exact", 40), ("sparse", 1), ("mixed", 2)):
        age(caches, place(name), days)
    total = sum(sizes.values())
    assert chosen(caches, keep_bytes=total) == []
    assert names(chosen(caches, keep_bytes=total - 1)) == {place("exact").path.name}
    assert len(chosen(caches, keep_bytes=total - sizes["exact"] - 1)) == 2
    assert len(chosen(caches, keep_bytes=0)) == 3


def test_only_those_that_are_larger(caches: Root, place: Of) -> None:
    largest = max((place(name).path for name in ("exact", "sparse", "mixed")), key=lambda path: measure(path)[0])
    assert names(chosen(caches, larger_than=measure(largest)[0] - 1)) == {largest.name}
    assert chosen(caches, larger_than=measure(largest)[0]) == []


@pytest.mark.parametrize("state", ["waiting", "queued", "interrupted", "paused", "blocked", "running"])
def test_a_student_that_is_not_at_rest_protects_what_it_reads(caches: Root, place: Of, state: str) -> None:
    student(place("exact")).write_state(state=state)
    assert place("exact").path.name not in names(chosen(caches, keep_bytes=0))
    assert len(chosen(caches, keep_bytes=0)) == 2


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_one_at_rest_does_not(caches: Root, place: Of, state: str) -> None:
    student(place("exact")).write_state(state=state)
    assert len(chosen(caches, keep_bytes=0)) == 3


def test_a_fill_stage_that_goes_on_protects_what_it_fills(caches: Root, place: Of) -> None:
    fill = next(use.stage for use in place("mixed").uses if use.fills)
    fill.write_state(state="interrupted")
    assert "teacher-cache-" in Needs(caches).of(place("mixed"))


def test_a_live_launcher_protects_whatever_its_sweep_reads(caches: Root) -> None:
    (sweep,) = caches.sweeps()
    with sweep.launching():
        assert chosen(caches, keep_bytes=0) == []
    assert len(chosen(caches, keep_bytes=0)) == 3


def test_a_pin_protects_what_the_pinned_was_made_from(caches: Root, place: Of) -> None:
    student(place("sparse")).pin("the paper's")
    assert "is pinned" in Needs(caches).of(place("sparse"))
    assert len(chosen(caches, keep_bytes=0)) == 2


def test_caches_of_another_root_are_left_alone(caches: Root, tmp_path: Path) -> None:
    assert chosen(Root(tmp_path / "mine", [caches.path]), keep_bytes=0) == []


def test_what_nobody_can_read_any_more_goes_by_itself(caches: Root, place: Of) -> None:
    old = place("exact")
    teacher = caches.stage(old.teacher["stage"])
    assert teacher is not None
    teacher.write_state(weights={"last": "another"})
    assert [item.why for item in chosen(caches)] == ["its teacher was trained again"] * 3
    teacher.write_state(state="interrupted")
    assert chosen(caches) == [], "it is being made, and may become the same"
    student(old).write_state(state="waiting", consumed={})
    assert old.path.name not in names(chosen(caches, keep_bytes=0)), "a student may still want it"


def test_freeing_moves_a_cache_aside_first(caches: Root, place: Of, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, bool]] = []
    real = __import__("shutil").rmtree

    def looked(path: Path) -> None:
        seen.append((path, (path / "manifest.json").exists()))
        real(path)

    expected = place("exact").path
    monkeypatch.setattr("kdscale.jobs.cache_spare.shutil.rmtree", looked)
    (item,) = (one for one in chosen(caches, keep_bytes=0) if one.path == expected)
    assert [problem for _, problem in free([item], caches)] == [""]
    assert not expected.exists()
    ((gone, whole),) = seen
    assert (gone.parent.name, whole) == (".removed", True)


def test_somebody_who_needs_it_by_now_keeps_it(caches: Root, place: Of) -> None:
    found = [one for one in chosen(caches, keep_bytes=0) if one.path == place("exact").path]
    student(place("exact")).write_state(state="waiting")
    ((_, problem),) = free(found, caches)
    assert problem.endswith("is waiting by now")
    assert place("exact").folder is not None


def test_a_plan_fills_anew_what_was_freed(caches: Root, place: Of, tmp_path: Path) -> None:
    from tests.small_caches import plan_of

    fill = next(use.stage.digest for use in place("exact").uses if use.fills)
    reader = student(place("exact"))
    found = [one for one in chosen(caches, keep_bytes=0) if one.path == place("exact").path]
    assert all(problem == "" for _, problem in free(found, caches))
    reader.write_state(state="waiting", consumed={})
    verdict = plan_of(Root(caches.path), tmp_path).stages[fill].reuse
    assert not verdict.done


def test_what_killed_processes_left_goes_too(caches: Root) -> None:
    removed = caches.caches / ".removed" / "0123.5"
    half = caches.caches / ".0123.node7.5.tmp"
    young = caches.caches / ".4567.node7.5.tmp"
    for path in (removed, half, young):
        path.mkdir(parents=True)
    then = time.time() - LEFT_OVER_S - 1
    os.utime(half, (then, then))
    found = chosen(caches)
    assert names(found) == {removed.name, half.name}
    assert all(problem == "" for _, problem in free(found, caches))
    assert young.exists()
    assert not half.exists()
