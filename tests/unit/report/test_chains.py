from __future__ import annotations

import re
from pathlib import Path

from kdscale.report.chains import chain_figures, chain_of
from kdscale.report.groups import groups_of, layout_of
from kdscale.report.page import write_report
from kdscale.report.panels import colours_of
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import bench, takd


def drawn(path: Path) -> list[str]:
    sweep = SweepRecord(path)
    layout = layout_of(sweep)
    return chain_figures(sweep, groups_of(sweep, layout.over), colours_of(sweep, layout))


def test_a_chain_is_the_longest_way_of_teaching(tmp_path: Path) -> None:
    sweep = SweepRecord(takd(tmp_path))
    assert chain_of(sweep, sweep.trials[0]) == ["teacher", "assistant", "student"]


def test_each_network_of_a_chain_has_its_mark_and_size(tmp_path: Path) -> None:
    path = takd(tmp_path, axes={"seed": ["0", "1", "2"]})
    [svg] = drawn(path)
    said = re.findall(r"<title>([^<]*: (\w+), [\d.]+ [KM] parameters, [\d.]+[^<]*)</title>", svg)
    assert [name for _, name in said] == ["teacher", "assistant", "student"]
    assert "±" in said[-1][0]
    assert "From network to network" in write_report(path).read_text()


def test_two_networks_are_no_chain(tmp_path: Path) -> None:
    path = bench(tmp_path, methods=["ce", "kd"])
    assert drawn(path) == []
    assert "From network to network" not in write_report(path).read_text()
