"""What caches saved, from plan.json and the states of fill stages alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdscale.report.caches import cache_facts, cache_savings, said_in_short, teacher_times
from kdscale.report.graph import draw
from kdscale.report.page import write_report
from kdscale.report.records import SweepRecord
from kdscale.report.tables import summary
from tests.fake_report_runs import CACHED, DATA, FILL, STARTED, TEACHER, Fiction, bench, cached, write_sweep

ROWS = 421 * 128
"""Images of an epoch."""
EPOCHS = 12
COMPUTED = 318 * 512


def words(folder: Path) -> str:
    return " ".join(sentence for saving in cache_savings(SweepRecord(folder)) for sentence in saving.words())


def test_images_read_against_images_computed(tmp_path: Path) -> None:
    folder = cached(tmp_path)
    (saving,) = cache_savings(SweepRecord(folder))
    assert (saving.read, saving.computed) == (2 * EPOCHS * ROWS, COMPUTED)
    assert saving.bytes == 3_256_320
    text = words(folder)
    assert "asked once for 162,816 images in place of 1,293,312: 7.9 × fewer." in text
    assert "35.3 TFLOP of the teacher were not computed" in text
    assert "At the 5,200 images/s of filling (2 processes, 1 thread each) that is 3 min 37 s of teacher time." in text
    assert said_in_short(SweepRecord(folder)) == (
        "cache: 1,293,312 teacher images read, 162,816 computed: 7.9 × fewer, 35.3 TFLOP saved"
    )


def test_a_cache_that_was_there_already(tmp_path: Path) -> None:
    folder = cached(tmp_path, reused=("data", "teacher", "teacher-cache"))
    assert words(folder).startswith("Nothing was filled in this sweep: students read 1,293,312 answers")
    assert "5,200 images/s" in words(folder), "the rate at which it was filled then"
    assert said_in_short(SweepRecord(folder)).endswith("that were there already, none was computed")


def test_a_cache_that_did_not_pay(tmp_path: Path) -> None:
    folder = cached(tmp_path, seeds=1, epochs=3)
    assert "It did not pay: the teacher was asked for 162,816 images to fill it, students read 161,664." in words(
        folder
    )
    assert "fewer" not in said_in_short(SweepRecord(folder))
    assert "did not pay" in said_in_short(SweepRecord(folder))


def test_students_that_this_sweep_did_not_train_read_nothing(tmp_path: Path) -> None:
    folder = cached(tmp_path, reused=("student", "teacher-cache"))
    assert words(folder) == ""
    assert said_in_short(SweepRecord(folder)) == ""


def test_blocks_of_all_attempts_count(tmp_path: Path) -> None:
    """The results of a stage that was killed speak of its last attempt alone."""
    folder = cached(tmp_path, fill=replace(FILL, results={**FILL.results, "blocks": 100}))
    (state,) = tmp_path.glob("stages/teacher-cache-*/state.json")
    document = json.loads(state.read_text())
    attempts = [{"started": STARTED, "resumed_from": 12}, {"started": STARTED, "resumed_from": 218}]
    state.write_text(json.dumps(document | {"attempts": attempts, "steps": 318}))
    (saving,) = cache_savings(SweepRecord(folder))
    assert saving.computed == (318 - 12) * 512


def test_filling_on_use_is_not_counted(tmp_path: Path) -> None:
    student = replace(CACHED, cached={"teacher": []}, teachers={"data": "data", "teacher": "teacher"})
    folder = write_sweep(tmp_path, "on-use", [replace(DATA, of=()), TEACHER, student])
    assert "it was filled by those who read it" in words(folder)
    drawing = draw(SweepRecord(folder))
    assert [edge.role for edge in drawing.edges] == ["", "cached"]


def test_provenance_says_who_read_what(tmp_path: Path) -> None:
    (fact,) = cache_facts(SweepRecord(cached(tmp_path, seeds=6)))
    assert fact[0] == "cache of teacher"
    assert fact[1].startswith("3 views, dense, 20 B each, 3.26 MB in all · read by student[s0], student[s1]")
    assert fact[1].endswith(" and 2 more")


@pytest.mark.parametrize("seeds", [1, 20])
def test_the_cache_stands_between_teacher_and_students(tmp_path: Path, seeds: int) -> None:
    drawing = draw(SweepRecord(cached(tmp_path, seeds=seeds)))
    titles = [node.title for node in drawing.nodes]
    assert titles == ["data", "teacher", "teacher-cache", "student" if seeds == 1 else "student ×20"]
    assert len(drawing.edges) == 3, "students take nothing of the teacher but through its cache"
    cache = drawing.nodes[2]
    assert cache.height < drawing.nodes[1].height
    assert cache.lines() == ["teacher-cache", "3 views, dense", ""]


def test_parts_of_a_cache_are_one_box(tmp_path: Path) -> None:
    parts = [replace(FILL, name=f"teacher-cache-{n}of2") for n in (1, 2)]
    student = replace(
        CACHED, cached={"teacher": [part.name for part in parts]},
        teachers={"data": "data", "teacher": "teacher"}
        | {f"cache:teacher{'.1' * at}": part.name for at, part in enumerate(parts)},
    )  # fmt: skip
    folder = write_sweep(tmp_path, "parts", [replace(DATA, of=()), TEACHER, *parts, student])
    drawing = draw(SweepRecord(folder))
    assert [node.title for node in drawing.nodes] == ["data", "teacher", "teacher-cache", "student"]
    assert len(drawing.edges) == 3
    (saving,) = cache_savings(SweepRecord(folder))
    assert saving.computed == 2 * COMPUTED
    assert saving.rate == pytest.approx(5200)


def test_teacher_time_live_and_cached(tmp_path: Path) -> None:
    live = replace(CACHED, name="live", cached={}, teachers={"data": "data", "teacher": "teacher"})
    folder = write_sweep(tmp_path, "both", [replace(DATA, of=()), TEACHER, FILL, live, CACHED], tale=Fiction())
    for name, seconds in (("live", 0.02), ("student", 0.0002)):
        (spool,) = tmp_path.glob(f"stages/{name}-*/metrics.jsonl")
        line = {"step": 1, "epoch": 0.1, "time": STARTED, "metrics": {"time/teacher_s": seconds}}
        spool.write_text(json.dumps(line) + "\n")
    (time,) = teacher_times(SweepRecord(folder))
    assert (time.teacher, time.live, time.cached) == ("teacher", 0.02, 0.0002)
    assert (time.of_live, time.of_cached) == (["live"], ["student"])
    assert "took 20 ms of a step where it was live" in " ".join(write_report(folder).read_text().split())


def test_page_and_terminal_say_it(tmp_path: Path) -> None:
    folder = cached(tmp_path)
    page = write_report(folder).read_text()
    assert "What the cache saved" in page
    assert "7.9 × fewer" in page
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as captured:
        console.print(summary(folder))
    assert "cache: 1,293,312 teacher images read" in captured.get()


def test_a_sweep_without_caches_does_not_speak_of_them(tmp_path: Path) -> None:
    folder = bench(tmp_path, seeds=("0",))
    assert "What the cache saved" not in write_report(folder).read_text()
    assert said_in_short(SweepRecord(folder)) == ""
