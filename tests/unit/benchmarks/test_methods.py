"""What benchmarks/methods.py makes of a sweep's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks.methods import compared, write

TOP1 = {"ce": [0.80, 0.81, 0.82], "kd": [0.84, 0.845, 0.85], "worse": [0.70, 0.701, 0.70], "same": [0.80, 0.82, 0.81]}
STAGES = {name: {"cost": {"train_flops": 10e12}} for name in ("teacher", "init", "student")}


def row(method: str, stage: str, top1: float | None, seed: int = 0) -> dict[str, Any]:
    return {
        "trial": {"seed": str(seed), "method": method}, "stage": stage, "top1": top1, "digest": stage, "model": "net",
    }  # fmt: skip


def rows(top1: dict[str, list[float]]) -> list[dict[str, Any]]:
    students = [row(m, "student", v, seed) for m, values in top1.items() for seed, v in enumerate(values)]
    return [row("ce", "teacher", 0.9), *students]


def test_differences_are_welchs() -> None:
    found = {one.method: one for one in compared(rows(TOP1), STAGES)}
    for method in ("kd", "worse", "same"):
        mean, low, high = found[method].to_ce
        expected = stats.ttest_ind(TOP1[method], TOP1["ce"], equal_var=False).confidence_interval(0.95)
        assert mean == pytest.approx(sum(TOP1[method]) / 3 - 0.81)
        assert (low, high) == pytest.approx((expected.low, expected.high))
    assert found["ce"].to_ce == found["kd"].to_kd == (0, None, None)
    assert list(found) == ["kd", "ce", "same", "worse"]
    assert [method for method, one in found.items() if one.below_ce] == ["worse"]


def test_cost_is_that_of_all_stages_but_the_shared_teacher() -> None:
    found = {one.method: one for one in compared([*rows(TOP1), row("kd", "init", 0.1)], STAGES)}
    assert found["ce"].tflops == 10
    assert found["kd"].tflops == pytest.approx(40 / 3)


def test_one_seed_has_no_interval_and_a_failed_student_does_not_count() -> None:
    lost = [*rows({"ce": [0.8], "kd": [0.82, 0.84]}), row("kd", "student", None)]
    found = {one.method: one for one in compared(lost, STAGES)}
    assert found["kd"].to_ce == (pytest.approx(0.03), None, None)
    assert len(found["kd"].top1) == 2
    assert not found["kd"].below_ce


def test_without_the_references_there_is_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="no finished student of kd"):
        compared(rows({"ce": [0.8]}), STAGES)


def test_table_picture_and_figures_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "methods-0"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(rows(TOP1)))
    (folder / "plan.json").write_text(json.dumps({"stages": STAGES}))
    text = "data: {name: fashion_mnist, limit: 10000}\ntrain: {epochs: 8, batch_size: 128}\n"
    (folder / "sweep.yaml").write_text(text)
    write(folder, tmp_path / "out", "python -m benchmarks.methods")
    said = (tmp_path / "out" / "methods.md").read_text()
    assert "fashion_mnist, 10,000 rows, 8 epochs in batches of 128" in said
    assert "| kd | 3 | 84.50 ± 1.24 | +3.50 [" in said
    assert "Whole interval below ce: worse." in said
    document = json.loads((tmp_path / "out" / "methods.json").read_text())
    assert (document["command"], len(document["methods"])) == ("python -m benchmarks.methods", 4)
    assert (tmp_path / "out" / "methods.png").read_bytes().startswith(b"\x89PNG")
