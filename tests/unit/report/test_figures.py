"""What is drawn: matplotlib's figures, the stage graph, and the first look."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdscale.report import first_look, graph, panels, plots
from kdscale.report.groups import layout_of
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import (
    ASSISTANT,
    DATA,
    STUDENT,
    TEACHER,
    FakeStage,
    bench,
    takd,
    write_sweep,
)


def test_pareto_keeps_what_nothing_beats_at_its_cost() -> None:
    points = [plots.Point(n, c, v) for n, c, v in [("a", 1.0, 0.8), ("b", 2.0, 0.7), ("c", 2.0, 0.9), ("d", 3.0, 0.9)]]

    assert [p.name for p in plots.pareto(points)] == ["a", "c"]


def test_a_figure_follows_the_theme_and_says_names_when_hovered() -> None:
    points = [plots.Point('<b>&"$x$', 1.0, 0.8, 0.01, title='<b>&"$x$: 80 %'), plots.Point("kd", 9.0, 0.9)]

    svg = plots.trade_off_figure(points, "fig", "parameters")

    ET.fromstring(svg)  # well-formed
    assert not re.search(r"#0a0[bc]0\d", svg)
    assert "var(--s0)" in svg
    assert "var(--muted)" in svg
    assert "<title>&lt;b&gt;&amp;&quot;$x$: 80 %</title>" in svg
    assert "<text" in svg  # text stays text
    assert all(i.startswith("fig-") for i in re.findall(r'\bid="([^"]+)"', svg))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert used <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_what_a_strategy_measures_is_drawn_a_group_a_panel(tmp_path: Path) -> None:
    folder = takd(tmp_path)
    sweep = SweepRecord(folder)
    colours = panels.colours_of(sweep, layout_of(sweep))
    plain = panels.curve_rows(sweep, colours)
    assert panels.MEASURED not in [row.title for row in plain]
    measured = {"train/gate/a": 0.25, "train/gate/b": 0.75, "train/p_student": 0.5, "val/top1_of/b": 0.875}
    [*_, student] = sweep.trained
    for step in (1, 2):
        line = {"step": step, "epoch": float(step), "metrics": measured}
        with (student.folder / "metrics.jsonl").open("a") as spool:
            spool.write(json.dumps(line) + "\n")

    sweep = SweepRecord(folder)
    *others, row = panels.curve_rows(sweep, colours)

    assert [other.title for other in others] == [other.title for other in plain]
    assert [word for _, word in row.legend] == ["a", "b", "p_student"]
    gate, alone, top1 = row.panels
    assert "a: 0.25 at epoch 2" in gate
    assert "b: 0.75 at epoch 2" in gate
    assert f"{student.name}: gate" in gate
    assert "p_student: 0.5 at epoch 2" in alone
    assert "b: 87.5 at epoch 2" in top1


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    points = [(i / 100, 1 / (1 + i)) for i in range(5000)]

    svg = plots.curve_figure([plots.Line("teacher", points)], "c", "training loss")

    assert len(svg) < 20_000
    assert "teacher: 0.0002 at epoch 50" in svg


def test_nan_and_single_points_can_be_drawn() -> None:
    line = plots.metric_line({"train/loss": [(0.1, float("nan")), (0.2, 1.0)]}, "train/loss")

    assert line == [(0.2, 1.0)]
    ET.fromstring(plots.curve_figure([plots.Line("x", line)], "c", "training loss"))


def dense(runs: Path) -> SweepRecord:
    """Every network teaches all smaller ones."""
    student = replace(STUDENT, teachers={"data": "data", "t": "teacher", "assistant": "assistant"})
    return SweepRecord(write_sweep(runs, "dense", [DATA, TEACHER, ASSISTANT, student]))


def test_the_graph_has_a_column_a_depth_and_arrows_past_columns_go_over_them(tmp_path: Path) -> None:
    drawing = graph.draw(dense(tmp_path))

    assert [n.title for n in drawing.nodes] == ["data", "teacher", "assistant", "student"]
    assert len({n.x for n in drawing.nodes}) == 4
    roles = sorted(e.role for e in drawing.edges)
    assert roles == ["", "", "t", "t"]  # data feeds the teacher alone; `assistant` need not be said
    arch = max(drawing.edges, key=lambda e: -e.y)
    assert 0 < arch.y < min(n.y for n in drawing.nodes)
    assert all(0 <= n.x <= drawing.width - n.width and 0 <= n.y <= drawing.height - n.height for n in drawing.nodes)


def test_many_stages_are_folded_until_they_can_be_read(finished_bench: Path) -> None:
    drawing = graph.draw(SweepRecord(finished_bench))

    titles = [n.title for n in drawing.nodes]
    assert titles == [
        "teacher",
        "student[ce] ×12",
        "student[kd] ×12",
        "student[at] ×12",
        "student[fitnet] ×12",
        "student[crd] ×9",
    ]
    assert " to " in drawing.nodes[2].figure


def test_a_folded_box_shows_the_state_that_asks_for_attention(tmp_path: Path) -> None:
    def state(stage: FakeStage, values: dict[str, str]) -> str:
        return "failed" if values.get("seed") == "1" else "done"

    drawing = graph.draw(SweepRecord(bench(tmp_path, methods=["ce", "kd"], state=state)))

    assert {n.badge for n in drawing.nodes} == {"reused", "failed 2/3"}


def test_views_are_shown_as_they_are_stored(tmp_path: Path) -> None:
    images = (np.arange(3 * 28 * 28).reshape(3, 28, 28, 1) % 251).astype(np.uint8)
    (sheet,) = first_look.sheets(SweepRecord(takd(tmp_path, images=images)))

    assert sheet.stages == "assistant, student"
    assert sheet.also == "teacher"
    assert sheet.pixelated
    assert [v.label for v in sheet.views] == ["T-shirt/top", "Trouser", "Pullover"]
    kind, _, data = sheet.views[1].source.partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), images[1, :, :, 0])


def test_a_teacher_that_disagrees_is_named(finished_takd: Path) -> None:
    (sheet,) = first_look.sheets(SweepRecord(finished_takd))

    wrong = [v for v in sheet.views if not v.agrees]
    assert [(v.label, v.teacher) for v in wrong] == [
        ("Coat", "T-shirt/top"),
        ("Dress", "Ankle boot"),
        ("Pullover", "Bag"),
    ]
    assert sheet.agreement == pytest.approx(1 - 4 / 32)


def test_large_views_are_shrunk_and_in_colour(tmp_path: Path) -> None:
    images = np.full((2, 224, 224, 3), 90, np.uint8)
    (sheet,) = first_look.sheets(SweepRecord(takd(tmp_path, images=images)))

    data = sheet.views[0].source.removeprefix("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (112, 112)
    assert sheet.size == "224 × 224 px, colour"


def test_a_term_whose_gradient_dwarfs_the_rest_is_flagged(finished_bench: Path) -> None:
    tables = dict(first_look.term_tables(SweepRecord(finished_bench)))

    rows = {row.id: row for row in tables["student[at,mine48,s0]"]}
    assert rows["at"].warns
    assert "262 × all others' together" in rows["at"].remark
    assert not any(row.warns for row in tables["student[kd,mine48,s0]"])
    assert "ln 10 = 2.30" in tables["teacher"][0].remark


def test_a_term_without_gradient_is_flagged(tmp_path: Path) -> None:
    path = takd(tmp_path)
    step0 = next((tmp_path / "stages").glob("student-*")) / "step0.json"
    step0.write_text(re.sub(r'"gradient_share": [\d.]+', '"gradient_share": 0.0', step0.read_text(), count=1))

    rows = dict(first_look.term_tables(SweepRecord(path)))["student"]

    assert rows[0].remark == "no gradient reaches the student"


def test_whatever_a_strategy_measures_is_drawn_with_names_of_one_beginning_in_one_panel(tmp_path: Path) -> None:
    path = takd(tmp_path)
    everyone = panels.Colours(None, [])
    assert "What strategies measure" not in [row.title for row in panels.curve_rows(SweepRecord(path), everyone)]
    metrics = next((tmp_path / "stages").glob("student-*")) / "metrics.jsonl"
    measured = {"train/skipped": 1, "train/p_student": 0.5, "train/ran/b10": 1.0, "train/ran/b9": 0.0}
    with metrics.open("a") as file:
        file.writelines(json.dumps({"step": n, "epoch": n, "time": n, "metrics": measured}) + "\n" for n in (1, 2))

    row = panels.curve_rows(SweepRecord(path), everyone)[-1]

    assert row.title == "What strategies measure"
    assert [word for _, word in row.legend] == ["p_student", "b10", "b9"]
    first, second = row.panels
    assert "student: p_student" in first
    assert "student: ran" in second
    assert "b10: 1 at epoch 2" in second
    assert "b9: 0 at epoch 2" in second
