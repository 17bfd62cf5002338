"""The page that draws what benchmarks reached."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.figures import RESULTS, row
from benchmarks.page import MIDDLE, WIDTH, write_page


def drawn(folder: Path, value: float, sense: str, goal: float = 2.0) -> tuple[str, float, float]:
    """The verdict, where the dot is, and where the wanted side begins."""
    entry = row("ours to <bare>", [value / 2, value, 2 * value], "x", sense, goal)  # type: ignore[arg-type]
    rows = [entry.__dict__ | {"met": entry.met}]
    (folder / "step.json").write_text(json.dumps({"schema": 1, "quick": False, "rows": rows, "cores": 2}))
    text = write_page(folder).read_text()
    assert "ours to &lt;bare&gt;" in text
    assert "A whole kdscale training step" in text, "what the script says of itself"
    (verdict,) = re.findall(r">(met|missed)<", text)
    (dot,) = re.findall(r'cx="([\d.]+)"', text)
    (want,) = re.findall(r'<rect x="(\d+)"', text)
    return verdict, float(dot), float(want)


@pytest.mark.parametrize(
    ("value", "sense", "verdict", "dot"),
    [
        (2.0, ">=", "met", MIDDLE), (4.0, ">=", "met", WIDTH), (9.0, ">=", "met", WIDTH), (1.0, ">=", "missed", 0),
        (2.0, "<=", "met", MIDDLE), (1.0, "<=", "met", 0), (4.0, "<=", "missed", WIDTH),
    ],
)  # fmt: skip
def test_a_figure_lies_beside_its_goal(tmp_path: Path, value: float, sense: str, verdict: str, dot: float) -> None:
    assert drawn(tmp_path, value, sense) == (verdict, dot, MIDDLE if sense == ">=" else 0)


@pytest.mark.parametrize("found", [{"goal": 0.97, "ratios": {}}, {"rows": []}])
def test_what_has_no_rows_is_passed_over(tmp_path: Path, found: dict[str, object]) -> None:
    (tmp_path / "loader.json").write_text(json.dumps(found))
    assert "0 of 0 figures" in write_page(tmp_path).read_text()


def test_every_result_that_is_kept_can_be_drawn(tmp_path: Path) -> None:
    """Some call rows of data what others call rows of figures."""
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    text = write_page(tmp_path).read_text()
    for name in ("train", "footprint", "startup"):
        assert name in text
