"""Published figures at the top level: what they may speak of, and that nothing else changes by them."""

# ruff: noqa: E501 - one case a line
from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdscale.config.load import resolve_stages
from kdscale.config.published import PublishedFigure
from kdscale.errors import ConfigError
from tests.unit.config.conftest import Loading

SWEEP = """
protocol: paper
sweep:
  seed: [0, 1]
  method: {ce: {stages.student.losses: [{name: ce}], stages.student.teachers: {}}, kd: {}}
  lr: {low: {train.lr: 0.01}, high: {train.lr: 0.1}}
  exclude: [{method: ce, lr: low}]
"""
FIGURE = "within: 0.004, source: the paper"


def test_figures_are_found_by_axes_and_stages(load_text: Loading) -> None:
    text = f"""
expect:
  - {{where: {{method: kd, seed: [0, 1]}}, top1: 0.7066, {FIGURE}}}
  - {{where: {{seed: 1}}, stage: [teacher, student], top1_best_on_test: 0.7, {FIGURE}}}
  - {{where: {{method: kd}}, over: {{method: ce}}, by_at_least: 0.01, source: the paper}}
"""
    sweep = load_text(SWEEP + text)
    first, second, third = sweep.expect
    assert (first.figure, first.value, first.stages) == ("top1", 0.7066, [])
    assert (second.figure, second.value, second.stages) == ("top1_best_on_test", 0.7, ["teacher", "student"])
    assert (third.figure, third.value) == ("top1", 0.01)
    axes = [trial.axes for trial in sweep.trials]
    assert [one for one in axes if first.holds_for(one)] == [one for one in axes if one["method"] == "kd"]
    assert [one for one in axes if second.holds_for(one)] == [one for one in axes if one["seed"] == "1"]
    assert [one for one in axes if third.is_exceeded(one)] == [one for one in axes if one["method"] == "ce"]
    assert third.without_over(axes[0]) == (("seed", "0"), ("lr", axes[0]["lr"]))


def test_they_are_no_part_of_any_stage(load_text: Loading) -> None:
    plain, expecting = load_text(SWEEP), load_text(f"{SWEEP}\nexpect: [{{top1: 0.7, {FIGURE}}}]")
    assert [resolve_stages(one) for one in expecting.trials] == [resolve_stages(one) for one in plain.trials]
    assert expecting.expect
    assert not plain.expect


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"where: {{methd: kd}}, top1: 0.7, {FIGURE}", "expect.0.where.methd: no such axis; did you mean method?"),
        (f"where: {{method: kdd}}, top1: 0.7, {FIGURE}", "expect.0.where.method: kdd is no value of it; did you mean kd?"),
        (f"where: {{seed: [0, 7]}}, top1: 0.7, {FIGURE}", "expect.0.where.seed: 7 is no value of it; known: 0, 1"),
        (f"stage: studnt, top1: 0.7, {FIGURE}", "expect.0.stage: no such stage as studnt; did you mean student?"),
        (f"where: {{method: ce, lr: low}}, top1: 0.7, {FIGURE}", "expect.0.where: leaves no trial: sweep.exclude"),
        ("top1: 0.7, within: 0.004", 'expect.0: has no source: say one, such as source: "Tian et al., ICLR 2020, table 1"'),
        (f"top1: 70.66, {FIGURE}", "expect.0.top1: input should be less than or equal to 1 (it is 70.66)"),
        (FIGURE, "expect.0: has no figure: say one of top1, top1_best_on_test, ensemble_top1, or over and by_at_least"),
        (f"top1: 0.7, ensemble_top1: 0.7, {FIGURE}", "expect.0: has top1, ensemble_top1: say one of"),
        ("top1: 0.7, source: x", "expect.0: top1 needs within: the largest difference that counts as reproduced"),
        ("by_at_least: 0.1, source: x", "expect.0: by_at_least needs over: the values of axes whose trials"),
        (f"top1: 0.7, over: {{method: ce}}, {FIGURE}", "expect.0: over does not go with top1: leave it out"),
        (f"over: {{method: ce}}, by_at_least: 0.1, {FIGURE}", "expect.0: within does not go with by_at_least"),
        ("where: {method: kd}, over: {method: ec}, by_at_least: 0.1, source: x", "over.method: ec is no value of it; known: ce, kd"),
        ("where: {method: kd}, over: {method: kd}, by_at_least: 0.1, source: x", "over: names trials of `where` itself"),
        ("where: {method: kd, lr: low}, over: {method: ce}, by_at_least: 0.1, source: x", "leaves no trial to exceed"),
        (f"where: {{}}, tpo1: 0.7, {FIGURE}", "expect.0.tpo1: unknown key; did you mean top1?"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_its_line(load_text: Loading, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^x\.yaml:\d+: .*{re.escape(said)}") as caught:
        load_text(f"{SWEEP}\nexpect:\n  - {{{given}}}")
    assert "\n" not in str(caught.value)
    line = int(str(caught.value).split(":")[1])
    assert load_line(line).startswith("  - {")


def load_line(number: int) -> str:
    return Path("x.yaml").read_text().splitlines()[number - 1]


def test_the_best_on_test_needs_somebody_who_looks(load_text: Loading) -> None:
    text = SWEEP.replace("protocol: paper", "protocol: standard")
    with pytest.raises(ConfigError, match=r"expect.0.top1_best_on_test: needs protocol: paper, which looks at test"):
        load_text(f"{text}\nexpect: [{{top1_best_on_test: 0.7, {FIGURE}}}]")


def test_what_the_command_line_leaves_out_is_not_compared(load_text: Loading) -> None:
    text = f"{SWEEP}\nexpect: [{{where: {{method: kd}}, top1: 0.7, {FIGURE}}}, {{where: {{seed: 1}}, top1: 0.6, {FIGURE}}}]"
    assert [one.value for one in load_text(text, "method=ce").expect] == [0.6]
    assert [one.value for one in load_text(text, "seed=0").expect] == [0.7]
    assert [one.value for one in load_text(text, "train.epochs=3").expect] == [0.7, 0.6]


def test_the_command_line_is_named_where_it_says_them(load_text: Loading) -> None:
    with pytest.raises(ConfigError, match=r"^command line: expect.0.stage: no such stage as studnt"):
        load_text(SWEEP, f"expect=[{{stage: studnt, top1: 0.7, {FIGURE}}}]")


def test_they_cannot_be_swept(load_text: Loading) -> None:
    with pytest.raises(ConfigError, match="expect belongs to the whole sweep"):
        load_text("sweep: {expect: [[], []]}")


def test_what_is_written_down_is_read_again() -> None:
    one = PublishedFigure.model_validate({"where": {"seed": [0, 1]}, "top1": 0.7, "within": 0.1, "source": "x"})
    assert PublishedFigure.model_validate(one.model_dump(exclude_unset=True)) == one
