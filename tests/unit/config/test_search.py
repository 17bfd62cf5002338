"""A sweep section that is a search: what it may say, and the trials that suggestions make."""

from __future__ import annotations

from typing import Any

import pytest

from kdscale.config.load import Sweep, load
from kdscale.config.space import dimension
from kdscale.errors import ConfigError
from tests.unit.config.conftest import Loading

SEARCH = """
sweep:
  method: optuna
  trials: 50
  metric: val/top1
  space:
    stages.student.losses.kd.weight: {uniform: [0.1, 0.9]}
    train.lr: {loguniform: [0.001, 0.3]}
    train.batch_size: {integer: [32, 256], step: 32}
    stages.student.losses.kd.temperature: [1, 2, 4, 8]
"""
VALUES = {
    "stages.student.losses.kd.weight": 0.25, "train.lr": 0.0125, "train.batch_size": 96,
    "stages.student.losses.kd.temperature": 2,
}  # fmt: skip


def swept(sweep: Sweep) -> list[dict[str, Any]]:
    return [trial.swept for trial in sweep.trials]


def test_the_corners_show_both_ends_and_every_choice(load_text: Loading) -> None:
    corners = swept(load_text(SEARCH))
    assert [one["stages.student.losses.kd.temperature"] for one in corners] == [1, 2, 4, 8]
    assert [one["train.batch_size"] for one in corners] == [32, 256, 256, 256]
    assert [one["train.lr"] for one in corners[:2]] == [0.001, 0.3]


def test_a_suggestion_is_a_trial_whose_config_has_its_values(load_text: Loading) -> None:
    sweep = load_text(SEARCH)
    (trial,) = sweep.suggested({"t7": VALUES})
    assert trial.axes == {"trial": "t7"}
    assert trial.swept == VALUES  # all of them, though nothing differs from them: one trial's digest is as in a crowd
    assert (trial.experiment.train.lr, trial.experiment.train.batch_size) == (0.0125, 96)
    assert [term.weight for term in trial.stages["student"].terms if term.name == "kd"] == [0.25]


def test_seeds_beside_the_space_make_several_trials_of_a_suggestion(load_text: Loading) -> None:
    trials = load_text(SEARCH, "seed=0,1").suggested({"t0": VALUES})
    assert [trial.axes for trial in trials] == [{"trial": "t0", "seed": "0"}, {"trial": "t0", "seed": "1"}]


def test_the_command_line_changes_its_settings(load_text: Loading) -> None:
    search = load_text(
        SEARCH, "sweep.trials=80", "sweep.sampler=random", "sweep.sampler.seed=3", "sweep.prune=false",
        "sweep.space.train.lr=null", "train.lr=0.1",
    ).search  # fmt: skip
    assert search is not None
    assert (search.trials, search.sampler.name, search.sampler.seed, search.prune) == (80, "random", 3, None)
    assert "train.lr" not in search.space


def test_how_many_trials_is_no_part_of_what_a_search_is(load_text: Loading) -> None:
    first, more, other = (load_text(SEARCH, *flags).search for flags in ((), ("sweep.trials=80",), ("sweep.stage=a",)))
    assert first is not None
    assert more is not None
    assert other is not None
    assert first.identity == more.identity != other.identity


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("trials=80", "command line: trials=80: a setting of the search: say sweep.trials=80"),
        ("sweep.trials=0", "command line: sweep.trials: input should be greater than 0 (it is 0)"),
        ("sweep.method=optunna", "'optunna' is no search: say optuna; an axis called method is a mapping"),
        ("sweep.metrics=a", "sweep.metrics: no setting of a search (method, trials, metric,"),
        ("train.momentum=0.1,0.9", "beside its space only seed may be swept"),
        ("train.lr=0.1", "train.lr: sweep.space goes through its values; take that out with sweep.space.train.lr=null"),
        ("sweep.zip=[{seed: [1]}]", "sweep.zip: a search makes its trials itself"),
        ("sweep.space=null", "sweep.space: is missing"),
        ("sweep.space.name=[a, b]", "name belongs to the whole sweep and cannot differ between its trials"),
        ("sweep.space.train.lr={log_uniform: [0.1, 1]}", "did you mean loguniform?"),
        ("sweep.space.train.lrr=[0.1, 1]", "unknown key; did you mean lr? (with "),
        ("sweep.space.data.val_fraction={uniform: [0, 2]}", "data.val_fraction: input should be less than 1"),
        ("sweep.sampler=tpa", "sweep.sampler: input should be 'tpe' or 'random'"),
        ("sweep.prune.percentile=100", "sweep.prune.percentile: input should be less than 100"),
    ],
)  # fmt: skip
def test_what_a_search_cannot_be(load_text: Loading, flag: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(SEARCH, flag)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_search_loads_by_its_name() -> None:
    search = load("kdscale:search.yaml").search
    assert search is not None
    assert (search.trials, search.metric, len(search.space)) == (20, "val/top1", 3)


def test_an_axis_may_still_be_called_method(load_text: Loading) -> None:
    sweep = load_text("sweep: {method: {kd: , hot: {stages.student.losses.kd.temperature: 8}}}\n")
    assert sweep.search is None
    assert sweep.axes == {"method": ["kd", "hot"]}


# --------------------------------------------------------------------------- dimensions


@pytest.mark.parametrize(
    ("how", "all_values"),
    [
        ([4, "a"], [4, "a"]), ({"choice": [None, 1]}, [None, 1]), ({"integer": [1, 3]}, [1, 2, 3]),
        ({"integer": [32, 100], "step": 32}, [32, 64, 96]), ({"uniform": [0.1, 0.3], "step": 0.1}, [0.1, 0.2, 0.3]),
    ],
)  # fmt: skip
def test_every_value_comes_up_and_no_other(how: Any, all_values: list[Any]) -> None:
    found = dimension(how, "here")
    drawn = [found.at(n / 1000) for n in range(1000)]
    assert list(dict.fromkeys(drawn)) == all_values
    assert [found.corner(0), found.corner(found.corners - 1)] == [all_values[0], all_values[-1]]


@pytest.mark.parametrize(
    "how",
    [
        [], 3, {}, {"choice": []}, {"uniform": [1, 1]}, {"uniform": [2, 1]}, {"uniform": ["a", 1]}, {"uniform": [0]},
        {"loguniform": [0, 1]}, {"integer": [0.5, 2]}, {"uniform": [0, float("inf")]}, {"uniform": [0, 1], "q": 1},
        {"loguniform": [1, 2], "step": 0.1}, {"integer": [1, 9], "step": 0.5}, {"integer": [1, 3], "step": 5},
        {"uniform": [0, 1], "step": 0}, {"choice": [1, 2], "step": 1}, {"integer": [True, 4]},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_dimension(how: Any) -> None:
    with pytest.raises(ConfigError, match=r"^here: "):
        dimension(how, "here")
