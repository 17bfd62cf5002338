"""Every name that a report prints is found again by the one resolver of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.names import resolve
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import FakeStage, bench, takd, write_sweep


def pasted(sweep: Path) -> None:
    record = SweepRecord(sweep)
    root = Root(sweep.parent.parent)
    for stage in record.stages.values():
        found = resolve(record.name_of(stage), root)
        assert isinstance(found, StageFolder)
        assert found.path == stage.folder, record.name_of(stage)


def test_of_a_chain_and_its_data(tmp_path: Path) -> None:
    pasted(takd(tmp_path))


def test_of_a_matrix(tmp_path: Path) -> None:
    pasted(bench(tmp_path, seeds=["0", "1"]))


def test_of_stages_that_depend_on_some_axes_only(tmp_path: Path) -> None:
    stages = [FakeStage("teacher", of=("student",)), FakeStage("student", teachers={"t": "teacher"})]
    pasted(write_sweep(tmp_path, "x", stages, {"student": ["a", "b"], "seed": ["0", "1"]}))


@pytest.mark.parametrize("axes", [{"lr": ["1", "2"], "depth": ["1", "2"]}, {"seed": ["0", "1"], "kind": ["s0", "s1"]}])
def test_of_values_that_two_axes_share(tmp_path: Path, axes: dict[str, list[str]]) -> None:
    pasted(write_sweep(tmp_path, "x", [FakeStage("student")], axes))


def test_of_two_sweeps_that_are_called_the_same(tmp_path: Path) -> None:
    first = write_sweep(tmp_path, "x", [FakeStage("one")])
    second = write_sweep(tmp_path, "x", [FakeStage("two")], {"seed": ["0"]})

    pasted(first)
    pasted(second)
