"""Axes of a sweep: which trials they make, and in what order everything is applied."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdscale.config.load import Sweep, load, resolve_stages
from kdscale.config.patches import parse_override
from kdscale.errors import ConfigError
from tests.unit.config.conftest import PAIR, Loading

METHODS = """
sweep:
  seed: [0, 1]
  method:
    ce: {stages.student.losses: [{name: ce}], stages.student.teachers: {}}
    kd:
    hot: {stages.student.losses.kd.temperature: 8, train: {lr: 0.05}}
"""


def students(sweep: Sweep) -> list[Any]:
    return [resolve_stages(trial)["student"] for trial in sweep.trials]


# --------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("text", "values", "sweeps"),
    [
        ("a.b=1", [1], False), ("a=1,2", [1, 2], True), ("a=[1,2]", [[1, 2]], False),
        ("a=[1,2],[3]", [[1, 2], [3]], True),
        ("a={x: 1, y: 2}", [{"x": 1, "y": 2}], False), ("a='x,y'", ["x,y"], False), ('a="x, (",z', ["x, (", "z"], True),
        ("a=1e-4", [1e-4], False), ("a=", [None], False), ("a=x=y", ["x=y"], False), ("a=range(3)", [0, 1, 2], True),
        ("a=range(2, 8, 3)", [2, 5], True), ("a=range(1)", [0], True), ("a = 1 , 2", [1, 2], True),
        ("a=teacher@epoch:3", ["teacher@epoch:3"], False), ("a=it's", ["it's"], False),
    ],
)  # fmt: skip
def test_values_on_the_command_line(text: str, values: list[Any], sweeps: bool) -> None:
    got = parse_override(text)
    assert (got.values, got.sweeps) == (values, sweeps)


@given(values=st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_numbers_are_read_as_they_are_written(values: list[float]) -> None:
    assert parse_override("a=" + ",".join(map(repr, values))).values == values


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "a=[1", "a=range(x)", "a=range(0)", "a=range(3", "a={1"])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^command line: ") as caught:
        parse_override(text)
    assert "\n" not in str(caught.value)


def test_lists_go_by_id_and_by_number(load_text: Loading) -> None:
    by_id = load_text("", "stages.student.losses.kd.temperature=2,4")
    by_number = load_text("", "stages.student.losses.1.temperature=2,4")
    for sweep in (by_id, by_number):
        assert [spec.passes["main"][1].options["temperature"] for spec in students(sweep)] == [2, 4]
    assert by_id.axes == {"temperature": ["2", "4"]}
    assert [trial.swept for trial in by_id.trials] == [
        {"stages.student.losses.kd.temperature": 2}, {"stages.student.losses.kd.temperature": 4}
    ]  # fmt: skip


# --------------------------------------------------------------------------- grids


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    rates=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=3, unique=True),
    flags=st.booleans(),
)
def test_a_grid_is_every_combination_wherever_it_is_written(
    seeds: list[int], rates: list[float], flags: bool, load_text: Loading
) -> None:
    if flags:
        many = [f"{key}={','.join(map(str, values))}" for key, values in (("seed", seeds), ("train.lr", rates))]
        sweep = load_text("", *many)
    else:
        sweep = load_text(f"sweep: {{seed: {seeds}, train.lr: {rates}}}\n")
    got = [(trial.experiment.seed, trial.experiment.train.lr) for trial in sweep.trials]
    assert got == list(itertools.product(seeds, rates))


def test_an_axis_on_the_command_line_replaces_the_files(load_text: Loading) -> None:
    sweep = load_text(METHODS, "seed=range(5)")
    assert sweep.axes == {"seed": ["0", "1", "2", "3", "4"], "method": ["ce", "kd", "hot"]}
    assert len(load_text(METHODS, "seed=3").trials) == 3
    assert {trial.experiment.seed for trial in load_text(METHODS, "seed=3").trials} == {3}
    assert len(load_text(METHODS, "sweep.seed=null").trials) == 3
    assert len(load_text(METHODS, "sweep.seed=[4,5,6]").trials) == 9


def test_the_command_line_picks_named_patches(load_text: Loading) -> None:
    assert load_text(METHODS, "method=kd").axes == {"seed": ["0", "1"], "method": ["kd"]}
    assert load_text(METHODS, "method=hot,ce").axes["method"] == ["hot", "ce"]
    with pytest.raises(
        ConfigError, match=r"^command line: method=kdd: kdd is no patch of this axis; did you mean kd\?"
    ):
        load_text(METHODS, "method=kdd")


def test_equal_last_parts_of_keys_are_told_apart(load_text: Loading) -> None:
    sweep = load_text("", "train.lr=0.1,0.2", "stages.student.train.lr=0.3,0.4")
    assert list(sweep.axes) == ["train.lr", "stages.student.train.lr"]


def test_values_that_differ_in_nothing_are_not_what_was_swept(load_text: Loading) -> None:
    [trial] = load_text("sweep: {seed: [3]}\n").trials
    assert (trial.swept, trial.axes) == ({}, {"seed": "3"})


# --------------------------------------------------------------------------- patches


def test_patches_merge_plain_keys_and_set_dotted_ones(load_text: Loading) -> None:
    sweep = load_text("train: {lr: 0.2, epochs: 3}\n" + METHODS, "seed=0")
    ce, kd, hot = students(sweep)
    assert ([term.name for term in ce.passes["main"]], ce.teachers) == (["ce"], {})
    assert (kd.train.lr, kd.train.epochs, len(kd.passes["main"])) == (0.2, 3, 2)
    assert (hot.train.lr, hot.train.epochs) == (0.05, 3)
    assert hot.passes["main"][1].options["temperature"] == 8
    assert sweep.trials[2].swept == {"stages.student.losses.kd.temperature": 8, "train.lr": 0.05}


def test_axes_through_values_and_flags_see_what_patches_brought(load_text: Loading) -> None:
    text = """
sweep:
  stages.student.losses.soft.weight: [2, 3]
  method:
    one: {stages.student.losses: [{name: kd, id: soft}]}
    two: {stages.student.losses: [{name: ce}, {name: kd, id: soft, temperature: 9}]}
"""
    sweep = load_text(text, "stages.student.losses.soft.temperature=5")
    assert list(sweep.axes) == ["weight", "method"]
    assert [spec.passes["main"][-1].weight for spec in students(sweep)] == [2, 2, 3, 3]
    assert {spec.passes["main"][-1].options["temperature"] for spec in students(sweep)} == {5}


def test_use_merges_what_a_file_itself_says(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "base.yaml").write_text("train: {lr: 0.7}\nstages: {student: {seed: 9}}\n")
    (tmp_path / "methods" / "at.yaml").write_text(
        "extends: base.yaml\nname: at\nparams: {beta: 2}\nstages:\n  student:\n    losses: [{name: kd, weight: beta}]\n"
    )
    text = "sweep: {method: {at: {use: methods/at.yaml, stages.student.losses.kd.temperature: 7}}}\n"

    sweep = load_text(text)

    [spec], [trial] = students(sweep), sweep.trials
    assert sweep.name == "pair"
    assert (spec.train.lr, spec.seed) == (0.1, 0)  # what the fragment extends stays behind
    assert [(term.name, term.weight, term.options) for term in spec.passes["main"]] == [("kd", 2, {"temperature": 7})]
    assert trial.sources["stages.student.losses.0.name"] == "methods/at.yaml:6"
    assert trial.sources["stages.student.losses.0.temperature"] == "x.yaml:14 (sweep.method.at)"


def test_use_starts_from_the_file_that_says_it(load_text: Loading, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "hot.yaml").write_text("train: {lr: 0.7}\n")
    (tmp_path / "deep" / "bench.yaml").write_text(f"{PAIR}\nsweep: {{m: {{hot: {{use: [hot.yaml]}}}}}}\n")
    assert load_text("extends: deep/bench.yaml\n", whole=True).trials[0].experiment.train.lr == 0.7


def test_shipped_methods_can_be_used(load_text: Loading) -> None:
    sweep = load_text("sweep: {method: {ce: {use: kdscale:methods/ce.yaml}, kd: {use: kdscale:methods/kd.yaml}}}\n")
    assert [trial.swept for trial in sweep.trials] == [{"method": "ce"}, {"method": "kd"}]


def test_exclusions(load_text: Loading) -> None:
    rules = "  exclude: [{method: [ce, hot], seed: 1}]\n"
    labels = [tuple(trial.axes.values()) for trial in load_text(METHODS + rules).trials]
    assert labels == [("0", "ce"), ("0", "kd"), ("0", "hot"), ("1", "kd")]
    assert len(load_text(METHODS + rules, "seed=1").trials) == 1
    assert len(load_text(METHODS + rules, "seed=7").trials) == 3


# --------------------------------------------------------------------------- zipped and random


def test_zipped_keys_change_together(load_text: Loading) -> None:
    text = "sweep: {seed: [0, 1], zip: [{train.lr: [0.1, 0.4], train.batch_size: [64, 256]}]}\n"
    sweep = load_text(text)
    got = [(t.experiment.seed, t.experiment.train.lr, t.experiment.train.batch_size) for t in sweep.trials]
    assert got == [(0, 0.1, 64), (0, 0.4, 256), (1, 0.1, 64), (1, 0.4, 256)]
    assert sweep.axes == {"seed": ["0", "1"], "lr+batch_size": ["0.1/64", "0.4/256"]}


SPACE = """
sweep:
  random:
    trials: %d
    seed: %d
    space: {train.lr: {loguniform: [1e-3, 1]}, train.epochs: {integer: [2, 4]}, train.momentum: {uniform: [0.5, 0.6]}%s}
"""


def drawn(sweep: Sweep) -> list[tuple[float, int, float]]:
    trains = [trial.experiment.train for trial in sweep.trials]
    return [(train.lr, train.epochs, train.momentum) for train in trains]


def test_draws_depend_on_seed_key_and_number_alone(load_text: Loading) -> None:
    many = drawn(load_text(SPACE % (40, 0, "")))
    assert drawn(load_text(SPACE % (3, 0, ", train.bn: {choice: [local, sync]}"))) == many[:3]
    assert drawn(load_text(SPACE % (3, 1, ""))) != many[:3]
    rates, epochs, momenta = zip(*many, strict=True)
    assert all(1e-3 <= rate <= 1 for rate in rates)
    assert 0.2 < sum(rate < 0.0316 for rate in rates) / 40 < 0.8  # evenly over the logarithm
    assert set(epochs) == {2, 3, 4}
    assert all(0.5 <= momentum <= 0.6 for momentum in momenta)


def test_draws_are_the_same_for_ever(load_text: Loading) -> None:
    assert drawn(load_text(SPACE % (2, 0, ""))) == [(0.0159524, 2, 0.563276), (0.151397, 4, 0.527827)]


# --------------------------------------------------------------------------- size


def test_a_thousand_trials_load(load_text: Loading) -> None:
    sweep = load_text(METHODS, "seed=range(50)", "train.momentum=0.1,0.2,0.3,0.4,0.5,0.6,0.7")
    assert len(sweep.trials) == 1050


def test_loading_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from kdscale.config.load import load; from kdscale.config.show import show_config;"
        "show_config(load('kdscale:quickstart.yaml', ['seed=range(3)']));"
        "print(sorted({'torch', 'mlflow', 'numba', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_record_of_a_sweep_can_be_loaded_again(load_text: Loading, tmp_path: Path) -> None:
    sweep = load_text(METHODS, "train.epochs=7", "seed=1,2")
    (tmp_path / "again.yaml").write_text(sweep.text)
    again = load(tmp_path / "again.yaml")
    assert [trial.experiment for trial in again.trials] == [trial.experiment for trial in sweep.trials]
    assert again.axes == sweep.axes
