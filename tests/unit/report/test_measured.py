"""Own metrics and further test sets in results, tables, filters and on a tracking server."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kdscale.errors import ConfigError
from kdscale.pipeline.names import names_in
from kdscale.report.ranking import chosen_groups, ranked
from kdscale.report.records import SweepRecord
from kdscale.report.results import collect, figures, write_results
from kdscale.report.tables import summary
from kdscale.trackers.figures import trial_figures
from kdscale.trackers.files import read_sweep
from tests.fake_report_runs import ASSISTANT, DATA, STUDENT, TEACHER, FakeStage, Fiction, write_sweep

MEASURED: dict[str, Any] = {
    "metrics": {"macro_f1": 0.8125, "worst": {"class": 0.5}},
    "sets": {"ood": {"rows": 50, "top1": 0.61, "nll": 1.5, "per_class": [0.5, 0.7], "metrics": {"macro_f1": 0.6}}},
    "wall_s": 2.0,
}
EVAL = FakeStage(
    "student-eval", "macro_f1, worst, ood", 0, 0.0, {"student": "student", "data": "data"}, None, kind="evaluate",
    results=MEASURED,
)  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three seeds, whose students are measured."""
    stages = [replace(DATA, of=()), replace(TEACHER, of=()), ASSISTANT, STUDENT, EVAL]
    return write_sweep(tmp_path / "runs", "measured", stages, {"seed": ["0", "1", "2"]}, Fiction())


def test_they_stand_with_the_stage_that_they_are_of(sweep: Path) -> None:
    rows = collect(sweep)
    assert {row["stage"] for row in rows} == {"teacher", "assistant", "student"}
    student = next(row for row in rows if row["stage"] == "student")
    assert student["extra"]["metrics"] == MEASURED["metrics"]
    assert student["extra"]["sets"] == MEASURED["sets"]
    assert "metrics" not in rows[0]["extra"]
    write_results(sweep)
    with (sweep / "results.csv").open() as file:
        line = next(line for line in csv.DictReader(file) if line["stage"] == "student")
    assert (line["extra.metrics.worst.class"], line["extra.sets.ood.top1"]) == ("0.5", "0.61")


def test_they_are_figures_that_a_filter_may_name_and_no_choice_may_be_made_by(sweep: Path) -> None:
    record = SweepRecord(sweep)
    student = next(stage for stage in record.trained if stage.name == "student")
    found = figures(student)
    assert {name: found[name] for name in found if name.startswith(("metrics.", "sets."))} == {
        "metrics.macro_f1": 0.8125, "metrics.worst.class": 0.5, "sets.ood.rows": 50, "sets.ood.top1": 0.61,
        "sets.ood.nll": 1.5, "sets.ood.metrics.macro_f1": 0.6,
    }  # fmt: skip
    kept, _ = chosen_groups([record], where="metrics.macro_f1>0.8 and sets.ood.top1<0.7")
    none, _ = chosen_groups([record], where="metrics.macro_f1>0.82")
    assert (len(kept), len(none)) == (1, 0)
    for name in ("metrics.macro_f1", "sets.ood.top1"):
        with pytest.raises(ConfigError, match=r"is a figure of test.*--best val/rating chooses on validation"):
            ranked(kept, name)


def test_the_table_has_columns_for_them(sweep: Path) -> None:
    console = Console(width=220, record=True)
    console.print(summary(sweep))
    said = console.export_text()
    head = next(line for line in said.splitlines() if line.startswith("stage "))
    assert all(word in head for word in ("macro_f1", "worst.class", "ood %"))
    assert "0.8125" in said
    assert "61.00" in said


def test_a_measurement_is_named_by_its_trial(sweep: Path) -> None:
    record = SweepRecord(sweep)
    stages = [stage for stage in record.stages.values() if stage.kind == "evaluate"]
    expected = {f"measured:student-eval[s{n}]" for n in range(3)}
    assert {record.name_of(stage) for stage in stages} == expected
    names = names_in(record.plan, "measured")
    assert {names[stage.digest] for stage in stages} == expected


def test_a_tracking_server_gets_them_with_the_final_figures(sweep: Path) -> None:
    files = read_sweep(sweep.parents[1], sweep)
    found = trial_figures(files, files.trials[0])
    assert found["final/metrics/macro_f1"] == 0.8125
    assert found["final/sets/ood/top1"] == 0.61
    assert "final/sets/ood/per_class" not in found
