from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.report.groups import against, baseline_of, groups_of, layout_of
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import FakeStage, bench, takd, write_sweep


def test_methods_become_rows_and_students_columns_whatever_their_order(tmp_path: Path) -> None:
    axes = {"student": ["a", "b"], "seed": ["0", "1"], "method": ["ce", "kd"]}
    layout = layout_of(SweepRecord(write_sweep(tmp_path, "x", [FakeStage("student")], axes)))

    assert (layout.over, layout.rows, layout.columns) == (("seed",), "method", "student")


def test_a_third_axis_repeats_the_matrix(tmp_path: Path) -> None:
    axes = {"method": ["ce", "kd"], "student": ["a", "b"], "train.lr": ["0.1", "0.2"]}

    assert layout_of(SweepRecord(write_sweep(tmp_path, "x", [FakeStage("student")], axes))).repeat == ("train.lr",)


@pytest.mark.parametrize("axes", [{}, {"seed": ["0", "1"]}, {"train.lr": ["0.1", "0.2"]}])
def test_fewer_than_two_axes_span_no_matrix(tmp_path: Path, axes: dict[str, list[str]]) -> None:
    assert not layout_of(SweepRecord(write_sweep(tmp_path, "x", [FakeStage("student")], axes))).is_matrix


def test_gain_over_ce_is_paired_by_seed(finished_bench: Path) -> None:
    groups = groups_of(SweepRecord(finished_bench), ["seed"])
    kd = next(g for g in groups if g.axes == {"method": "kd", "student": "r18"})

    base = baseline_of(kd, groups)

    assert base is not None
    assert base.axes == {"method": "ce", "student": "r18"}
    assert baseline_of(base, groups) is None
    gain = against(kd, base)
    assert gain is not None
    assert gain.n == 3
    assert gain.mean == pytest.approx(0.017, abs=0.002)
    assert gain.p is not None
    assert gain.p < 0.01


def test_a_stage_that_all_seeds_share_is_one_outcome(tmp_path: Path) -> None:
    stages = [FakeStage("teacher", of=()), FakeStage("student", teachers={"t": "teacher"})]
    sweep = SweepRecord(write_sweep(tmp_path, "x", stages, {"seed": ["0", "1", "2"]}))

    (teacher,) = groups_of(sweep, ["seed"], stage="teacher")
    (student,) = groups_of(sweep, ["seed"])

    assert (teacher.interval().n, teacher.interval().half) == (1, None)  # type: ignore[union-attr]
    assert student.interval().n == 3  # type: ignore[union-attr]


def test_a_stage_that_still_trains_has_no_validation_to_be_chosen_by(tmp_path: Path) -> None:
    sweep = SweepRecord(bench(tmp_path, state=lambda stage, values: "running"))

    assert all(g.mean("val/top1") is None for g in groups_of(sweep, ["seed"]))


def test_the_typical_stage_is_the_median_one(tmp_path: Path) -> None:
    axes = {"seed": ["0", "1", "2"]}
    luck = {"0": 0.80, "1": 0.90, "2": 0.83}
    sweep = write_sweep(tmp_path, "x", [FakeStage("student")], axes)
    (group,) = groups_of(SweepRecord(sweep), ["seed"])
    for member in group.members:
        member.stage.state["results"]["top1"] = luck[member.key[0]]

    assert group.typical("top1").digest == group.members[2].stage.digest


def test_names_are_short_unique_and_paste(tmp_path: Path) -> None:
    record = SweepRecord(bench(tmp_path))
    stage = record.stage(record.trials[4], "student")

    assert record.name_of(record.stage(record.trials[0], "teacher")) == "birds-bench:teacher"
    assert record.name_of(stage) == "birds-bench:student[ce,mine96,s1]"
    takd(tmp_path, "birds-bench", {"seed": ["0"]})
    assert SweepRecord(record.path).name_of(stage) == f"{record.path.name}:student[ce,mine96,s1]"


def test_the_final_stage_is_what_nothing_consumes(tmp_path: Path) -> None:
    stages = [FakeStage("student"), FakeStage("tuned", teachers={"t": "student"})]
    record = SweepRecord(write_sweep(tmp_path, "x", stages))

    assert record.final(record.trials[0]) == "tuned"


def test_a_line_that_is_being_written_is_left_out(finished_takd: Path) -> None:
    record = SweepRecord(finished_takd)
    stage = record.stage(record.trials[0], "student")
    assert stage.folder is not None
    spool = stage.folder / "metrics.jsonl"
    whole = len(stage.curves["train/loss"])
    spool.write_text(spool.read_text() + '{"step": 99, "epoch": 1.0, "metr')

    again = SweepRecord(record.path)

    assert len(again.stage(again.trials[0], "student").curves["train/loss"]) == whole
