from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import ConfigError
from kdscale.report.command import Request, run_report
from kdscale.report.groups import Group
from kdscale.report.ranking import as_json, chosen_groups, ranked, ranking_grid
from kdscale.report.records import SweepRecord
from tests.fake_report_runs import FakeStage, Fiction, takd, write_sweep


def groups_in(path: Path, **chosen: Any) -> list[Group]:
    return chosen_groups([SweepRecord(path)], **chosen)[0]


def test_the_best_under_a_size_by_validation(finished_bench: Path) -> None:
    best = ranked(groups_in(finished_bench, where="params_m<=5"), "val/top1")

    assert best[0].axes == {"method": "crd", "student": "mine96"}
    assert all((g.mean("params_m") or 99) <= 5 for g in best)
    values = [g.mean("val/top1") or 0 for g in best]
    assert values == sorted(values, reverse=True)


def test_of_a_loss_and_a_latency_less_is_better(finished_bench: Path) -> None:
    groups = groups_in(finished_bench)

    assert ranked(groups, "val/nll")[0].axes["student"] == "r18"
    assert ranked(groups, "latency_ms")[0].axes["student"] == "mine48"


@pytest.mark.parametrize("metric", ["top1", "nll", "agreement", "test/top1"])
def test_choosing_by_test_is_refused_with_the_way_out(finished_bench: Path, metric: str) -> None:
    with pytest.raises(ConfigError, match="--best val/"):
        ranked(groups_in(finished_bench), metric)


@pytest.mark.parametrize(
    ("metric", "validated"), [("test/top1", "top1"), ("top1_best_on_test", "top1"), ("best_miou_on_test", "miou")]
)
def test_the_best_epoch_on_test_chooses_nothing(finished_bench: Path, metric: str, validated: str) -> None:
    with pytest.raises(ConfigError, match=rf"--best val/{validated} chooses on validation"):
        ranked(groups_in(finished_bench), metric)


def test_an_unknown_figure_gets_the_nearest(finished_bench: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean val/top1"):
        ranked(groups_in(finished_bench), "val/top")


def test_what_cannot_be_told_from_the_first_is_said(tmp_path: Path) -> None:
    tops = {
        ("kd", "0"): 0.80,
        ("kd", "1"): 0.82,
        ("crd", "0"): 0.83,
        ("crd", "1"): 0.80,
        ("at", "0"): 0.60,
        ("at", "1"): 0.61,
    }

    def top1(stage: FakeStage, values: dict[str, str]) -> float:
        return tops[values["method"], values["seed"]]

    axes = {"method": ["kd", "crd", "at"], "seed": ["0", "1"]}
    path = write_sweep(tmp_path, "x", [FakeStage("student")], axes, Fiction(top1=top1))
    best = ranked(groups_in(path), "val/top1")

    grid = ranking_grid(best, "val/top1")

    assert [row[1].text for row in grid.rows] == ["crd", "kd", "at"]
    assert grid.rows[0][-1].text == ""
    assert grid.rows[1][-1].text.startswith("not distinguishable from 1 (paired, p=.")


def test_the_median_seed_is_named_for_export(finished_bench: Path) -> None:
    best = ranked(groups_in(finished_bench), "val/top1")

    grid = ranking_grid(best, "val/top1")

    values = best[0].values("val/top1")
    middle = sorted(values, key=lambda key: values[key])[1][0]
    assert any(f"birds-bench:student[crd,r18,s{middle}]" in remark for remark in grid.remarks)


def test_sweeps_side_by_side_show_the_keys_that_differ(tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "a", "train": {"lr": 0.1, "epochs": 12}, "tracking": {"uri": "off"}}
    terms = [{"name": "ce"}, {"name": "kd", "temperature": 4}]
    first = takd(tmp_path / "a", "first", config=config | {"stages": {"student": {"losses": terms}}})
    other = config | {"name": "b", "train": {"lr": 0.05, "epochs": 12}, "tracking": {"uri": "x"}}
    terms = [{"name": "ce"}, {"name": "kd", "temperature": 2}]
    second = takd(tmp_path / "b", "second", config=other | {"stages": {"student": {"losses": terms}}})

    groups, _ = chosen_groups([SweepRecord(first), SweepRecord(second)])

    assert [g.changed for g in groups] == [
        {"train.lr": "0.1", "stages.student.losses.kd.temperature": "4"},
        {"train.lr": "0.05", "stages.student.losses.kd.temperature": "2"},
    ]


def test_json_holds_every_figure_with_its_interval(finished_bench: Path) -> None:
    groups = groups_in(finished_bench)

    document = json.loads(json.dumps(as_json(ranked(groups, "val/top1"), groups, "val/top1")))

    assert (document["schema"], document["chosen_by"]) == (1, "val/top1")
    first = document["groups"][0]
    assert first["axes"] == {"method": "crd", "student": "r18"}
    assert first["figures"]["top1"]["n"] == 3
    assert first["figures"]["top1"]["ci95"] > 0
    assert first["over_ce"]["p"] < 0.05
    assert len(first["names"]) == 3


def test_over_another_axis(finished_bench: Path) -> None:
    groups = groups_in(finished_bench, over=["seed", "student"])

    assert [len(g.stages) for g in groups] == [12, 12, 12, 12, 9]
    assert groups[0].repeats == "trial"
    with pytest.raises(ConfigError, match="no such axis"):
        groups_in(finished_bench, over=["sed"])


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        ({"best": "val/top1", "where": "params_m<=5"}, "crd · mine96"),
        ({"form": "latex"}, r"\toprule"),
        ({"form": "md", "where": "method==kd"}, "| kd |"),
        ({"form": "html"}, "<table>"),
        ({"over": []}, "Test top-1 %, seed 2"),
        ({"as_json": True}, '"schema": 1'),
        ({"where": "top1>0.5"}, "chosen on test"),
        ({}, "report.html"),
    ],
)
def test_what_the_command_prints(
    finished_bench: Path, capsys: pytest.CaptureFixture[str], request_of: dict[str, Any], said: str
) -> None:
    run_report(Request([finished_bench], **request_of))

    assert said in capsys.readouterr().out


def test_a_condition_that_nothing_meets_is_said(finished_bench: Path) -> None:
    with pytest.raises(ConfigError, match="keeps none of 57 trials"):
        run_report(Request([finished_bench], where="params_m < 0"))
