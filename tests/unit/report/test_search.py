"""A search on the page: who leads, how it came about, what mattered; and that stopping early is no failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdscale.report.page import write_report
from kdscale.report.records import PRUNED, SweepRecord
from kdscale.report.search import search_view, short_keys
from kdscale.report.tables import summary
from tests.fake_report_runs import takd


def asked(number: int, state: str, value: float | None) -> dict[str, Any]:
    values = {
        "train.lr": 0.1 / (number + 1),
        "stages.student.losses.kd.weight": 0.5,
        "stages.student.losses.ce.weight": 1,
    }
    epoch = 3 if state == "pruned" else None
    return {"trial": f"t{number}", "state": state, "values": values, "value": value, "epoch": epoch, "reason": "boom"}


def document(*trials: dict[str, Any], direction: str = "maximize") -> dict[str, Any]:
    space = {"train.lr": "0.001 to 0.3", "stages.student.losses.kd.weight": "", "stages.student.losses.ce.weight": ""}
    return {
        "schema": 1, "metric": "val/top1", "direction": direction, "stage": "student", "trials": 9, "space": space,
        "asked": list(trials), "importance": {"train.lr": 0.75, "stages.student.losses.kd.weight": 0.25},
    }  # fmt: skip


TRIALS = [asked(0, "complete", 0.5), asked(1, "pruned", 0.1), asked(2, "complete", 0.7), asked(3, "failed", None)]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = takd(tmp_path)
    (folder / "search.json").write_text(json.dumps(document(*TRIALS, asked(4, "open", None))))
    return folder


@pytest.mark.parametrize(("direction", "best"), [("maximize", "t2"), ("minimize", "t0")])
def test_who_leads_is_by_the_direction(sweep: Path, direction: str, best: str) -> None:
    (sweep / "search.json").write_text(json.dumps(document(*TRIALS, direction=direction)))
    view = search_view(SweepRecord(sweep))
    assert view is not None
    assert view.title.startswith(f"{best} leads with val/top1 ")
    assert view.grid.rows[0][0].text == best
    assert view.progress == "4 of 9 trials: 2 complete, 1 stopped early, 1 failed"


def test_the_page_shows_course_importance_and_values(sweep: Path) -> None:
    page = write_report(sweep).read_text()
    assert '<section id="search">' in page
    assert "t1: val/top1 0.1 when stopped at epoch 3" in page
    assert "train.lr: 75 %" in page
    assert "t2 leads with val/top1 0.7: lr 0.0333333, kd.weight 0.5, ce.weight 1." in page
    assert "t3 failed: boom" in page


def test_before_anything_is_complete_the_page_says_so(sweep: Path) -> None:
    (sweep / "search.json").write_text(json.dumps(document(asked(0, "open", None)) | {"importance": {}}))
    assert "No trial is complete yet." in write_report(sweep).read_text()


def test_a_sweep_that_is_no_search_has_no_such_section(finished_takd: Path) -> None:
    assert '<section id="search">' not in write_report(finished_takd).read_text()


def test_what_a_search_stopped_is_no_failure(sweep: Path) -> None:
    from rich.console import Console

    stage = next(s for s in SweepRecord(sweep).stages.values() if s.name == "student" and s.folder)
    assert stage.folder is not None
    state = json.loads((stage.folder / "state.json").read_text())
    (stage.folder / "state.json").write_text(
        json.dumps(state | {"state": "cancelled", "reason": f"{PRUNED} at epoch 3"})
    )
    page = write_report(sweep).read_text()
    assert "What failed" not in page
    assert "This sweep is not finished" not in page
    console = Console(width=200)
    with console.capture() as captured:
        console.print(summary(sweep))
    assert f"1 cancelled ({PRUNED})" in captured.get()


def test_keys_are_as_short_as_they_can_be_told_apart() -> None:
    keys = ["train.lr", "stages.a.train.lr", "stages.student.losses.kd.weight", "data.size"]
    assert short_keys(keys) == {
        "train.lr": "train.lr", "stages.a.train.lr": "a.train.lr", "stages.student.losses.kd.weight": "weight",
        "data.size": "size",
    }  # fmt: skip
