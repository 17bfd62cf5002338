"""The stage graph of chains, two stages, ensembles and caches: accuracies on the boxes, and arrows that can be told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kdscale.report.graph import Drawing, Node, draw
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import (
    ASSISTANT,
    CACHED,
    DATA,
    FILL,
    STUDENT,
    TEACHER,
    FakeStage,
    Fiction,
    takd,
    write_sweep,
)

NET = FakeStage("net", "resnet_cifar depth=8", 77_754, teachers={"data": "data"})


def drawn(
    runs: Path, *stages: FakeStage, selectors: dict[str, str] | None = None, **tale: dict[str, object]
) -> Drawing:
    """A sweep of one trial, with the snapshots that roles take."""
    folder = write_sweep(runs, "x", [DATA, *stages], tale=Fiction(**tale))  # type: ignore[arg-type]
    plan = json.loads((folder / "plan.json").read_text())
    for stage in plan["stages"].values():
        for parent in stage["parents"]:
            parent["selector"] = (selectors or {}).get(parent["role"], parent["selector"])
    (folder / "plan.json").write_text(json.dumps(plan))
    return draw(SweepRecord(folder))


def labels(drawing: Drawing) -> list[str]:
    return [edge.role for edge in drawing.edges]


def test_every_box_of_a_chain_has_its_accuracy(tmp_path: Path) -> None:
    sweep = SweepRecord(takd(tmp_path))
    figures = {node.title: node.lines()[2] for node in draw(sweep).nodes}
    assert figures.pop("data") == ""
    assert figures == {
        stage.name: f"{100 * stage.results['top1']:.2f} % · {stage.results['params'] / 1000:.3g} K"
        for stage in sweep.trained
    }
    assert list(figures) == ["teacher", "assistant", "student"]


def test_a_hand_over_says_what_is_handed_over(tmp_path: Path) -> None:
    first = replace(ASSISTANT, name="init", teachers={"data": "data", "teacher": "teacher"})
    second = replace(STUDENT, teachers={"data": "data", "init_from": "init", "terms.ft": "init"})
    found = drawn(tmp_path, TEACHER, first, second, selectors={"init_from": "best", "terms.ft": "last#ft"})
    assert labels(found) == ["", "", "init@best, f…"]
    alone = replace(second, teachers={"data": "data", "terms.ft": "init"})
    assert labels(drawn(tmp_path / "alone", TEACHER, first, alone, selectors={"terms.ft": "best#ft"})) == [
        "", "", "ft's parts@b…",
    ]  # fmt: skip


def test_what_a_stage_takes_twice_from_another_is_one_arrow(tmp_path: Path) -> None:
    """An ensemble that is only measured starts from one of its members."""
    nets = [replace(NET, name=f"net{n}") for n in (1, 2)]
    whole = replace(NET, name="ensemble", teachers={"net1": "net1", "net2": "net2", "init_from": "net1"})
    found = drawn(tmp_path, *nets, whole)
    assert sorted(labels(found)) == ["", "", "", "init"]
    assert len({edge.path for edge in found.edges}) == 4


def test_an_ensemble_is_on_the_box_of_who_hears_it(tmp_path: Path) -> None:
    nets = [replace(NET, name=f"net{n}") for n in (1, 2)]
    heard = replace(NET, name="student", teachers={"net1": "net1", "net2": "net2"})
    told = {"teacher_top1": {"both": 0.935, "net1": 0.95, "net2": 0.9}, "top1": 0.9}
    figures = {node.title: node.figure for node in drawn(tmp_path, *nets, heard, results=told).nodes}
    assert figures["student"] == "90.00 % · hears 93.50 %"


def test_who_hears_its_teachers_one_by_one_hears_no_ensemble(tmp_path: Path) -> None:
    heard = replace(NET, name="student", teachers={"net": "net"})
    told = {"teacher_top1": {"net": 0.95}, "top1": 0.9}
    figures = {node.title: node.figure for node in drawn(tmp_path, NET, heard, results=told).nodes}
    assert figures["student"] == "90.00 % · 77.8 K"


def test_a_cache_says_which_snapshot_answers(tmp_path: Path) -> None:
    assert labels(drawn(tmp_path / "last", TEACHER, FILL, CACHED)) == ["", "", ""]
    assert labels(drawn(tmp_path / "best", TEACHER, FILL, CACHED, selectors={"teacher": "best"})) == ["", "@best", ""]


@pytest.mark.parametrize("beside", [0, 1, 4])
@pytest.mark.parametrize("stations", [1, 2, 5])
def test_an_arch_goes_over_all_boxes_between(stations: int, beside: int, tmp_path: Path) -> None:
    chain = [replace(NET, name="s0")]
    for n in range(1, stations + 1):
        taught = {"before": f"s{n - 1}"}
        chain += [replace(NET, name=name, teachers=taught) for name in [f"s{n}", *(f"s{n}b{m}" for m in range(beside))]]
    last = replace(NET, name="last", teachers={"far": "s0", "before": f"s{stations}"})
    found = drawn(tmp_path, *chain, last)
    (arch,) = [edge for edge in found.edges if edge.role == "far"]
    curve = points(arch.path)
    assert min(y for _, y in curve) > 0
    assert 0 < arch.y < min(y for _, y in curve)
    for node in found.nodes:
        if node.title not in ("s0", "last", "data"):
            assert not any(inside(node, x, y) for x, y in curve), node.title


def points(path: str) -> list[tuple[float, float]]:
    """Of a cubic Bézier curve, close together."""
    x0, y0, x1, y1, x2, y2, x3, y3 = (float(number) for number in re.findall(r"-?[\d.]+", path))
    shares = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3) for t in (n / 400 for n in range(401))]
    return [(a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3) for a, b, c, d in shares]


def inside(node: Node, x: float, y: float) -> bool:
    return node.x <= x <= node.x + node.width and node.y <= y <= node.y + node.height
