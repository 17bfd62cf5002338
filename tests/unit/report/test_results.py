from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from kdscale.errors import ConfigError, StageError
from kdscale.report.results import collect, write_results
from tests.fake_report_runs import bench, takd

FIXED = [
    "schema", "trial", "stage", "digest", "state", "model", "params", "flops", "top1", "top5", "nll", "ece",
    "agreement", "best_epoch", "best_top1", "latency_ms", "images_per_s", "wall_s", "extra",
]  # fmt: skip


def test_one_object_per_trial_and_stage_with_the_fixed_keys(tmp_path: Path) -> None:
    sweep = bench(tmp_path)

    rows = write_results(sweep)

    assert rows == json.loads((sweep / "results.json").read_text())
    assert len(rows) == 2 * 57  # 5 methods x 4 students x 3 seeds less one excluded pair; the teacher in each
    assert all(list(row) == FIXED for row in rows)
    assert {row["schema"] for row in rows} == {1}
    teachers = [row for row in rows if row["stage"] == "teacher"]
    assert len({row["digest"] for row in teachers}) == 1
    assert rows[1]["trial"] == {"method": "ce", "student": "mine48", "seed": "0"}
    assert rows[1]["agreement"] == {}
    assert rows[-1]["agreement"]["t"] == pytest.approx(0.95 - 0.3 * (1 - rows[-1]["top1"]))


def test_conversions_are_no_results(tmp_path: Path) -> None:
    assert [row["stage"] for row in collect(takd(tmp_path))] == ["teacher", "assistant", "student"]


def test_csv_is_flat_and_says_the_same(tmp_path: Path) -> None:
    sweep = bench(tmp_path)
    rows = write_results(sweep)

    with (sweep / "results.csv").open() as file:
        lines = list(csv.DictReader(file))

    assert len(lines) == len(rows)
    assert lines[5]["trial.method"] == rows[5]["trial"]["method"]
    assert float(lines[5]["top1"]) == rows[5]["top1"]
    assert json.loads(lines[5]["extra.per_class"]) == rows[5]["extra"]["per_class"]


def test_unfinished_stages_have_a_state_and_no_figures(tmp_path: Path) -> None:
    states = {"data": "done", "teacher": "running"}
    rows = collect(takd(tmp_path, state=lambda stage, values: states.get(stage.name, "waiting")))

    assert [row["state"] for row in rows] == ["running", "waiting", "waiting"]
    assert all(row["top1"] is None for row in rows)
    assert rows[2]["params"] == 77_754  # as planned


def test_nan_becomes_null_for_strict_readers(tmp_path: Path) -> None:
    sweep = takd(tmp_path, results={"nll": math.nan, "per_class": [math.nan, 0.5]})
    write_results(sweep)

    rows = json.loads((sweep / "results.json").read_text(), parse_constant=pytest.fail)

    assert rows[0]["nll"] is None
    assert rows[0]["extra"]["per_class"] == [None, 0.5]


def test_the_papers_figure_is_marked_as_biased(tmp_path: Path) -> None:
    row = collect(takd(tmp_path, results={"best_top1_on_test": 0.95}))[0]

    assert row["top1_best_on_test"] == 0.95
    assert row["biased"] == ["top1_best_on_test"]


def test_stages_are_found_by_digest_in_roots_that_may_be_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = takd(tmp_path / "mine")
    folder = next((tmp_path / "mine/stages").glob("teacher-*"))
    other = tmp_path / "lab/stages" / folder.name.replace("teacher", "big-net")
    other.parent.mkdir(parents=True)
    folder.rename(other)

    assert collect(sweep)[0]["state"] == "waiting"
    monkeypatch.setenv("KDSCALE_REUSE", str(tmp_path / "lab"))
    assert collect(sweep)[0]["top1"] is not None


def test_a_folder_without_a_plan_and_a_damaged_state_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no plan\.json"):
        collect(tmp_path)
    sweep = takd(tmp_path)
    state = next((tmp_path / "stages").glob("student-*")) / "state.json"
    state.write_text('{"state": ')

    with pytest.raises(StageError, match=r"state\.json is damaged"):
        collect(sweep)
