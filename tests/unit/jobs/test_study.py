"""The journal of a search: suggestions that come again after any kill, rounded, told once; and who is far behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdscale.config.search import SearchConfig
from kdscale.jobs.study import Asked, Study

SPACE: dict[str, Any] = {
    "train.lr": {"loguniform": [0.001, 0.3]},
    "weight": {"uniform": [0.1, 0.9]},
    "step": {"uniform": [0.1, 0.7], "step": 0.2},
    "train.batch_size": {"integer": [32, 256], "step": 32},
    "taps": [["a"], ["a", "b"], None],
}


def settings(**changes: Any) -> SearchConfig:
    return SearchConfig(
        **(
            {"method": "optuna", "trials": 20, "metric": "val/top1", "space": SPACE, "sampler": {"startup": 4}}
            | changes
        )
    )


def figure(values: dict[str, Any]) -> float:
    return -((values["weight"] - 0.4) ** 2) - abs(values["train.lr"] - 0.05)


def told(study: Study, number: int) -> None:
    """Tell one trial, each third as failed."""
    asked = study.trials()[number]
    if number % 3 == 2:
        study.fail(number, "boom")
    else:
        study.report(number, {1: figure(asked.values)})
        study.complete(number, figure(asked.values))


def course(study: Study, trials: int) -> list[Asked]:
    for _ in range(trials):
        told(study, study.ask().number)
    return study.trials()


def test_a_study_that_is_opened_anew_for_each_trial_suggests_the_same(tmp_path: Path) -> None:
    whole = course(Study(settings(), "maximize", tmp_path / "whole.jsonl"), 12)
    for _ in range(12):
        course(Study(settings(), "maximize", tmp_path / "killed.jsonl"), 1)
    assert Study(settings(), "maximize", tmp_path / "killed.jsonl").trials() == whole
    assert [trial.state for trial in whole[:3]] == ["complete", "complete", "failed"]
    assert whole[2].reason == "boom"


def test_another_seed_suggests_others() -> None:
    first, second = (course(Study(settings(sampler={"seed": seed}), "maximize"), 2) for seed in (0, 1))
    assert [trial.values for trial in first] != [trial.values for trial in second]


@pytest.mark.parametrize("lines", range(1, 7))
def test_a_kill_within_asking_loses_no_number_and_asks_nothing_twice(tmp_path: Path, lines: int) -> None:
    """The journal is cut behind each line of the first ask, and within the line that would come next."""
    journal = tmp_path / "study.jsonl"
    whole = Study(settings(), "maximize", journal).ask()
    content = journal.read_bytes().splitlines(keepends=True)
    assert len(content) == 2 + len(SPACE)  # the study, the trial, its values
    journal.write_bytes(b"".join(content[: 1 + lines]) + b'{"op_code":5,"wor')

    study = Study(settings(), "maximize", journal)

    (found,) = study.trials()
    assert found.state == "open"
    again = study.whole(found.number)
    assert again.values.keys() == SPACE.keys()
    assert {k: v for k, v in again.values.items() if k in found.values} == found.values
    assert lines > 1 or again == whole
    assert study.ask().number == 1


def test_values_are_rounded_before_they_are_stored(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    for trial in course(Study(settings(), "maximize", journal), 12):
        values = trial.values
        assert values["train.lr"] == float(f"{values['train.lr']:.4g}")
        assert values["weight"] == float(f"{values['weight']:.4g}")
        assert values["step"] in (0.1, 0.3, 0.5, 0.7)
        assert values["train.batch_size"] in range(32, 257, 32)
        assert values["taps"] in (["a"], ["a", "b"], None)
    stored = [json.loads(line) for line in journal.read_text().splitlines()]
    first = next(line for line in stored if line.get("param_name") == "train.lr")
    assert first["param_value_internal"] == Study(settings(), "maximize", journal).trials()[0].values["train.lr"]


def test_a_look_writes_nothing_and_suggests_what_comes_next(tmp_path: Path) -> None:
    journal = tmp_path / "study.jsonl"
    course(Study(settings(), "maximize", journal), 5)
    before = journal.read_bytes()
    seen = Study(settings(), "maximize", journal, writes=False).ask()
    assert journal.read_bytes() == before
    assert Study(settings(), "maximize", journal).ask() == seen
    assert Study(settings(), "maximize", tmp_path / "none.jsonl", writes=False).trials() == []
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_who_is_behind_the_median_is_pruned_with_his_last_figure(direction: Any, sign: int) -> None:
    study = Study(settings(prune={"after_trials": 3}), direction)
    for value in (0.5, 0.6, 0.7):
        number = study.ask().number
        study.report(number, {1: sign * value, 2: sign * value})
        assert not study.behind(number)
        study.complete(number, sign * value)
    good, bad = study.ask().number, study.ask().number
    study.report(good, {1: sign * 0.61})
    study.report(bad, {1: sign * 0.59})
    study.report(bad, {1: sign * 0.9, 2: sign * 0.58})  # an epoch is noted once
    assert (study.behind(good), study.behind(bad)) == (False, True)
    study.prune(bad)
    assert (study.trials()[bad].state, study.trials()[bad].value) == ("pruned", sign * 0.58)
    assert study.trials()[bad].epochs == {1: sign * 0.59, 2: sign * 0.58}


def test_importance_names_the_key_that_matters() -> None:
    study = Study(settings(sampler="random", space={"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}), "maximize")
    for number in range(40):
        assert number >= 8 or study.importance() == {}
        asked = study.ask()
        study.complete(asked.number, asked.values["b"] + 0.01 * asked.values["a"])
    found = study.importance()
    assert list(found) == ["b", "a"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["b"] > 0.8
