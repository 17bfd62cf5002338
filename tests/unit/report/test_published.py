"""Paper against here: what is said of each published figure, and in every form of the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdscale.config.published import PublishedFigure
from kdscale.report.command import Request, run_report
from kdscale.report.grid import Cell
from kdscale.report.page import write_report
from kdscale.report.published import published_grids, verdict
from kdscale.report.records import SweepRecord
from kdscale.report.statistics import Interval, interval
from kdscale.report.tables import summary
from kdscale.report.wording import percent
from tests.fake_report_runs import FakeStage, Fiction, write_sweep

TOP1 = {"ce": [0.690, 0.692, 0.694], "kd": [0.703, 0.706, 0.709]}
AXES = {"method": ["ce", "kd"], "seed": ["0", "1", "2"]}
STAGES = [FakeStage("student")]


def fake(folder: Path, *expect: Mapping[str, Any], waiting: tuple[str, ...] = (), **tale: Any) -> Path:
    def top1(stage: FakeStage, values: Mapping[str, str]) -> float:
        return TOP1[values["method"]][int(values["seed"])]

    def state(stage: FakeStage, values: Mapping[str, str]) -> str:
        return "waiting" if values["seed"] in waiting else "done"

    return write_sweep(folder, "row", STAGES, AXES, Fiction(top1=top1, state=state, expect=expect, **tale))


def row(folder: Path, expect: Mapping[str, Any], **how: Any) -> list[Cell]:
    (grid,) = published_grids(SweepRecord(fake(folder, {"source": "the paper", **expect}, **how)))
    (only,) = grid.rows
    return list(only)


def test_a_figure_stands_beside_the_mean_over_seeds(tmp_path: Path) -> None:
    name, paper, here, within, verdict = row(tmp_path, {"where": {"method": "kd"}, "top1": 0.7066, "within": 0.004})
    assert name.text == "kd"
    assert (paper.text, within.text) == ("70.66", "0.40")
    assert (here.text, here.note) == (percent(interval(TOP1["kd"])), "3 seeds, last")
    assert (verdict.text, verdict.tone) == ("yes", "good")
    assert verdict.note == "\N{MINUS SIGN}0.06, inside the interval"


def test_what_is_too_far_off_says_by_how_much_and_whether_seeds_explain_it(tmp_path: Path) -> None:
    low = row(tmp_path / "low", {"where": {"method": "ce"}, "top1": 0.70, "within": 0.004})[-1]
    assert (low.text, low.tone, low.note) == ("no", "bad", "\N{MINUS SIGN}0.80 too low, beyond the interval")
    high = row(tmp_path / "high", {"where": {"method": "kd"}, "top1": 0.70, "within": 0.004})[-1]
    assert high.note == "+0.60 too high, inside the interval"


def test_one_seed_says_nothing_of_an_interval(tmp_path: Path) -> None:
    expect = {"where": {"method": "kd", "seed": 1}, "top1": 0.706, "within": 0.004}
    cells = row(tmp_path, expect)
    assert (cells[2].text, cells[2].note, cells[-1].note) == ("70.60", "1 seed, last", "+0.00")


def test_what_has_not_run_is_said(tmp_path: Path) -> None:
    expect = {"where": {"method": "kd"}, "top1": 0.7066, "within": 0.004}
    some = row(tmp_path / "some", expect, waiting=("1", "2"))
    assert (some[2].text, some[2].note) == ("70.30", "1 of 3 seeds, last")
    none = row(tmp_path / "none", expect, waiting=("0", "1", "2"))
    assert [cell.text for cell in none[1:]] == ["70.66", "not run yet", "0.40", "–"]


def test_a_difference_is_paired(tmp_path: Path) -> None:
    expect = {"where": {"method": "kd"}, "over": {"method": "ce"}, "by_at_least": 0.01}
    name, paper, here, within, verdict = row(tmp_path / "met", expect)
    assert (name.text, paper.text, within.text) == ("kd over ce", "at least +1.00", "–")
    gains = [ours - theirs for ours, theirs in zip(TOP1["kd"], TOP1["ce"], strict=True)]
    assert here.text == f"+{percent(interval(gains))}"
    assert here.note == "3 pairs, last"
    assert verdict.text == "yes"
    missed = row(tmp_path / "missed", expect | {"by_at_least": 0.02}, waiting=("2",))
    assert (missed[2].note, missed[-1].text) == ("2 of 3 pairs, last", "no")
    assert "too low" in missed[-1].note


def test_a_paper_that_chose_its_epoch_on_test_is_compared_with_the_same_and_marked(tmp_path: Path) -> None:
    expect = {"top1_best_on_test": 0.72, "within": 0.01, "where": {"method": "kd"}, "source": "x"}
    folder = fake(tmp_path, expect, results={"best_top1_on_test": 0.718})
    (grid,) = published_grids(SweepRecord(folder))
    assert (grid.rows[0][2].text, grid.rows[0][2].note) == ("71.80 ± 0.00", "3 seeds, best")
    assert any("biased" in remark for remark in grid.remarks)


def test_an_ensemble_is_found_at_the_stage_that_hears_it(tmp_path: Path) -> None:
    expect = {"ensemble_top1": 0.688, "within": 0.004, "where": {"method": "kd", "seed": 0}}
    cells = row(tmp_path, expect, results={"teacher_top1": {"together": 0.69}})
    assert (cells[2].text, cells[2].note, cells[-1].text) == ("69.00", "1 seed, ensemble", "yes")


def test_a_stage_is_named_where_it_is_not_the_last(tmp_path: Path) -> None:
    stages = [FakeStage("teacher", of=()), FakeStage("student", teachers={"teacher": "teacher"})]
    rows = [{"stage": "teacher"}, {"stage": "student"}, {"where": {"seed": 0}, "stage": ["teacher", "student"]}, {}]
    expect = [{"top1": 0.9, "within": 0.01, "source": "x", **row} for row in rows]
    folder = write_sweep(tmp_path, "pair", stages, {"seed": ["0", "1"]}, Fiction(expect=expect))
    (grid,) = published_grids(SweepRecord(folder))
    assert [cells[0].text for cells in grid.rows] == ["teacher", "student", "s0 · teacher, student", "student"]
    assert [cells[2].note for cells in grid.rows] == ["1 seed, last", "2 seeds, last", "2 runs, last", "2 seeds, last"]


def test_several_sources_are_numbered(tmp_path: Path) -> None:
    figure = {"where": {"method": "kd"}, "top1": 0.7, "within": 0.1}
    folder = fake(tmp_path, figure | {"source": "one"}, figure | {"source": "two"}, figure | {"source": "one"})
    (grid,) = published_grids(SweepRecord(folder))
    assert [cells[0].text for cells in grid.rows] == ["kd [1]", "kd [2]", "kd [1]"]
    assert list(grid.remarks) == ["[1] one", "[2] two"]


def test_every_face_of_the_report_has_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect = {"where": {"method": "kd"}, "top1": 0.7066, "within": 0.004, "source": "Tian et al., table 1"}
    folder = fake(tmp_path, expect)
    console = Console(file=io.StringIO(), width=120)
    console.print(summary(folder))
    faces = {"screen": console.file.getvalue(), "page": write_report(folder).read_text()}  # type: ignore[attr-defined]
    for form in ("md", "latex", "html"):
        run_report(Request([folder], form=form))
        faces[form] = capsys.readouterr().out
    for face, text in faces.items():
        assert "Paper against here" in text, face
        assert "70.66" in text, face
        assert "Tian et al., table 1" in text, face
    run_report(Request([folder], best="val/top1", form="md"))
    assert "Paper against here" not in capsys.readouterr().out


def test_nothing_is_said_where_nothing_is_expected(finished_bench: Path) -> None:
    assert published_grids(SweepRecord(finished_bench)) == []


@given(hundredths=st.integers(0, 9_000), tolerance=st.integers(1, 900))
def test_a_difference_of_just_the_tolerance_counts(hundredths: int, tolerance: int) -> None:
    paper = {"top1": hundredths / 1e4, "within": tolerance / 1e4, "source": "x"}
    figure = PublishedFigure.model_validate(paper)
    here = [Interval((hundredths + off) / 1e4, None, 1) for off in (tolerance, tolerance + 1)]
    assert [verdict(figure, each).text for each in here] == ["yes", "no"]
