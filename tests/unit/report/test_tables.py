from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from kdscale.report.grid import Cell, Column, Grid, Screen, render
from kdscale.report.records import SweepRecord
from kdscale.report.tables import main_grids, summary, whole_grid
from kdscale.report.wording import DASH, count
from tests.fake_report_runs import FakeStage, Fiction, bench, takd, write_sweep


def printed(what: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_matrix_comes_first_with_intervals_gains_and_the_best_validation(finished_bench: Path) -> None:
    (grid,) = main_grids(SweepRecord(finished_bench))

    assert [c.name for c in grid.columns] == ["method \\ student", "mine48", "mine96", "r18", "mbv2"]
    assert [row[0].text for row in grid.rows] == ["ce", "kd", "at", "fitnet", "crd"]
    crd = grid.rows[4]
    assert [cell.best for cell in crd[1:4]] == [True, True, True]
    assert crd[4].text == "–"  # excluded
    assert crd[1].note.startswith("+2.")
    assert "p=.0" in crd[1].note or "p<.001" in crd[1].note
    assert " ± " in crd[1].text
    assert "over 3 seeds" in grid.title
    assert any("share their teacher" in remark for remark in grid.remarks)


def test_a_chain_has_its_stages_as_rows_teacher_first(finished_takd: Path) -> None:
    (grid,) = main_grids(SweepRecord(finished_takd))

    assert [row[0].text for row in grid.rows] == ["teacher", "assistant", "student"]
    assert [row[0].note for row in grid.rows][2] == "resnet_cifar depth=8"
    names = [c.name for c in grid.columns]
    assert {"params", "FLOPs", "top-1 %", "Δ teacher", "agrees %", "latency", "img/s", "time"} <= set(names)
    student = dict(zip(names, grid.rows[2], strict=True))
    assert student["params"].text == "77.8 K"
    assert student["Δ teacher"].text.startswith("\N{MINUS SIGN}")


def test_a_stage_says_what_training_it_takes(finished_takd: Path) -> None:
    sweep = SweepRecord(finished_takd)
    for grid in (*main_grids(sweep), whole_grid(sweep)):
        names = [c.name for c in grid.columns]
        rows = [dict(zip(names, row, strict=True)) for row in grid.rows]
        for row in rows:
            stage = next(s for s in sweep.trained if row[names[0]].text.rpartition(":")[2] == s.name)
            assert row["forwards"].text == count(stage.cost["forwards"])
            assert row["training FLOPs"].text == count(stage.cost["train_flops"])


def test_a_plan_from_before_forwards_were_counted_has_a_dash(finished_takd: Path) -> None:
    plan = json.loads((finished_takd / "plan.json").read_text())
    for stage in plan["stages"].values():
        del stage["cost"]["forwards"]
    (finished_takd / "plan.json").write_text(json.dumps(plan))
    (grid,) = main_grids(SweepRecord(finished_takd))
    forwards = [c.name for c in grid.columns].index("forwards")
    assert {row[forwards].text for row in grid.rows} == {DASH}


def test_gain_is_over_the_same_network_trained_alone(tmp_path: Path) -> None:
    alone = FakeStage("alone", "net", top1=0.80)
    student = FakeStage("student", "net", teachers={"t": "teacher"})
    sweep = SweepRecord(write_sweep(tmp_path, "x", [FakeStage("teacher", "big"), alone, student]))

    (grid,) = main_grids(sweep)

    gains = [row[[c.name for c in grid.columns].index("gain")].text for row in grid.rows]
    assert gains[:2] == ["–", "–"]
    assert gains[2].startswith("+")


def test_a_network_of_other_widths_is_not_the_same(tmp_path: Path) -> None:
    """The name in words leaves lists out: a teacher of ten times the size bore its student's name."""
    student = FakeStage("student", "net", params=5_000, teachers={"t": "teacher"})
    sweep = SweepRecord(write_sweep(tmp_path, "x", [FakeStage("teacher", "net", params=80_000), student]))

    (grid,) = main_grids(sweep)

    assert "gain" not in [c.name for c in grid.columns]


def test_one_seed_has_no_interval_and_no_p(tmp_path: Path) -> None:
    (grid,) = main_grids(SweepRecord(bench(tmp_path, seeds=["0"])))

    assert "±" not in grid.rows[1][1].text
    assert "p=" not in grid.rows[1][1].note
    assert grid.rows[1][1].note.startswith("+1.")


def test_an_unfinished_sweep_says_what_each_part_is_doing(tmp_path: Path) -> None:
    states = {"ce": "done", "kd": "running", "at": "failed", "fitnet": "blocked", "crd": "waiting"}

    def state(stage: FakeStage, values: dict[str, str]) -> str:
        return "done" if stage.name == "teacher" or values["seed"] == "0" else states[values["method"]]

    text = printed(summary(bench(tmp_path, state=state)))

    assert "1 of 3" in text
    assert text.index(" failed   ") < text.index(" blocked  ") < text.index("method \\ student")
    assert "NonFiniteLoss: term kd" in text
    assert "birds-bench:student[at,mine48,s1]" in text  # brackets are no markup
    assert "and 5 more" in text


def test_many_groups_are_cut_to_the_best_by_validation(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "x", [FakeStage("student")], {"train.lr": [f"0.{i:03}" for i in range(1, 101)]})

    (grid,) = main_grids(SweepRecord(sweep))

    assert len(grid.rows) == 20
    assert "best 20 of 100" in grid.title
    assert grid.rows[0][1].best


@pytest.mark.parametrize("axes", [None, {"first": ["copied", "shuffled"]}])
def test_what_an_ensemble_gets_right_stands_beside_who_hears_it(
    axes: dict[str, list[str]] | None, tmp_path: Path
) -> None:
    nets = [FakeStage(name, "net", top1=0.9) for name in ("net1", "net2")]
    heard = FakeStage("ensemble", "net", teachers={"net1": "net1", "net2": "net2"}, top1=0.9)
    told = {"teacher_top1": {"both": 0.935, "net1": 0.9, "net2": 0.9}}
    sweep = write_sweep(tmp_path, "x", [*nets, heard], axes, Fiction(results=told))

    (grid,) = main_grids(SweepRecord(sweep))

    assert grid.rows[-1][[c.name for c in grid.columns].index("teacher %")].text == "93.50"


def test_the_papers_figure_is_called_biased(tmp_path: Path) -> None:
    sweep = bench(tmp_path, methods=["kd"], results={"best_top1_on_test": 0.95})

    (grid,) = main_grids(SweepRecord(sweep))

    assert "best on test (biased)" in [c.name for c in grid.columns]


GRID = Grid(
    "Test of 1 & 2",
    [Column("a_b", number=False), Column("top-1 %"), Column("x", optional=True), Column("y", optional=True)],
    [[Cell("kd|[b]", "n"), Cell("83.1 ± 0.2", "+1.0 p<.001", best=True), Cell("1"), Cell("22222")]],
    ["A remark."],
)


def test_markdown() -> None:
    text = render(GRID, "md")

    assert "| --- | ---: | ---: | ---: |" in text
    assert "| kd\\|[b] (n) | **83.1 ± 0.2** (+1.0 p<.001) | 1 | 22222 |" in text


def test_latex_escapes_and_uses_booktabs() -> None:
    text = render(GRID, "latex")

    assert r"a\_b & top-1 \% & x & y \\" in text
    assert r"\textbf{83.1 $\pm$ 0.2} {\footnotesize(+1.0 p$<$.001)}" in text
    assert r"\caption{Test of 1 \& 2. A remark.}" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")


def test_latex_of_a_sweep_has_no_sign_that_a_plain_compiler_lacks(tmp_path: Path, finished_bench: Path) -> None:
    chain = takd(tmp_path / "other", "a_chain&more", {"seed": ["0", "1", "2"]})
    for sweep in (chain, finished_bench):
        for grid in main_grids(SweepRecord(sweep)):
            text = render(grid, "latex")
            rows = [line for line in text.splitlines() if line.endswith(r" \\")]
            assert text.isascii()
            assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(grid.columns) - 1}
            assert "interval over 3 seeds" in text
            assert "test" in text.partition(r"\caption")[2].partition("\n")[0].lower()


def test_html_escapes() -> None:
    text = render(GRID, "html")

    assert "p&lt;.001" in text
    assert '<td class="num best">83.1 ± 0.2' in text


@pytest.mark.parametrize(("width", "hidden"), [(29, []), (28, ["y"]), (21, ["x", "y"])])
def test_a_narrow_screen_drops_columns_from_the_right_and_says_so(width: int, hidden: list[str]) -> None:
    text = printed(Screen(GRID), width)

    assert "kd|[b]" in text
    said = " ".join(text.split()).partition("A remark.")[2].strip()
    assert said == (f"Hidden at this width: {', '.join(hidden)}." if hidden else "")
    assert ("22222" in text) == ("y" not in hidden)


def test_no_color_means_no_escape_codes(finished_bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    console.print(summary(finished_bench))

    assert "\x1b[3" not in console.file.getvalue()  # type: ignore[attr-defined]
