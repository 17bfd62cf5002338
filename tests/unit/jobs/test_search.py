"""A search between asking and telling: real plans and folders, whose stages somebody else is said to have run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdscale.config.load import load
from kdscale.errors import ConfigError, StageError
from kdscale.jobs.cancel import cancel
from kdscale.jobs.prepare import prepare_folders
from kdscale.jobs.search import Search
from kdscale.jobs.search_drive import expected, preview_lines
from kdscale.jobs.sweep_folder import write_sweep
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.small_search import asked_in, written


def search_in(tmp_path: Path, *overrides: str, **changes: Any) -> Search:
    root = Root(tmp_path / "runs")
    return Search(load(written(tmp_path, **changes), overrides), root)


@contextmanager
def begun(tmp_path: Path, *overrides: str, **changes: Any) -> Iterator[Search]:
    """As the command begins it."""
    search = search_in(tmp_path, *overrides, **changes)
    try:
        search.preview()
        plan = search.begin(resumed=True)
        write_sweep(Root(tmp_path / "runs"), search.plan.whole, search.sweep)
        prepare_folders(Root(tmp_path / "runs"), plan, retry_failed=False)
        yield search
    finally:
        search.end()


def stage_of(search: Search, tmp_path: Path, label: str, name: str = "student", seed: int = 0) -> StageFolder:
    found = Root(tmp_path / "runs").stage(search.plan.trials_of(label)[seed].stages[name])
    assert found is not None
    return found


def finish(stage: StageFolder, top1: float) -> None:
    """Leave what a finished stage leaves of its figures."""
    stage.metrics.write_text(
        f'{{"step": 160, "epoch": 8.0, "time": 1.0, "metrics": {{"val/top1": {top1}, "val/nll": 1.0}}}}\n'
    )
    stage.write_state(state="done", results={"top1": 0.5})


def states(search: Search) -> list[str]:
    return [trial.state for trial in search.trials]


def test_figures_are_told_and_the_next_one_is_asked_for(tmp_path: Path) -> None:
    with begun(tmp_path, "sweep.trials=2") as search:
        assert search.go_on() is None
        folder = search.folder
        assert [trial["label"] for trial in json.loads((folder / "plan.json").read_text())["trials"]] == ["t0"]
        for digest in search.plan.shared:  # teacher and data
            finish(Root(tmp_path / "runs").create_stage("shared", digest), 0.9)
        finish(stage_of(search, tmp_path, "t0"), 0.25)
        fresh = search.go_on()
        assert fresh == [search.plan.trials_of("t1")[0].stages["student"]]
        assert [one["value"] for one in asked_in(folder)] == [0.25, None]
        finish(stage_of(search, tmp_path, "t1"), 0.5)
        assert search.go_on() is None
        assert search.finished
        assert search.succeeded
    with begun(tmp_path, "sweep.trials=3") as more:  # another number of trials is the same search
        assert more.folder == folder
        assert states(more) == ["complete", "complete", "open"]


def test_a_suggestion_counts_by_its_mean_over_seeds(tmp_path: Path) -> None:
    with begun(tmp_path, seed=[0, 1]) as search:
        for seed in (0, 1):
            finish(stage_of(search, tmp_path, "t0", "teacher", seed), 0.9)
            finish(stage_of(search, tmp_path, "t0", "student", seed), 0.25 + 0.5 * seed)
        assert search.go_on() is not None
        assert search.trials[0].value == 0.5
        assert len(search.plan.shared) == 3  # the data, and a teacher for each seed


def test_a_trial_fails_by_its_own_stage_alone(tmp_path: Path) -> None:
    with begun(tmp_path, parallel=2) as search:
        stage_of(search, tmp_path, "t0", "teacher").write_state(state="failed", reason="no such file")
        stage_of(search, tmp_path, "t0").write_state(state="blocked", reason="teacher did not finish")
        assert search.go_on() is None
        assert states(search) == ["open", "open"]
        stage_of(search, tmp_path, "t1").write_state(state="failed", reason="the loss is nan")
        assert search.go_on() is not None
        assert states(search) == ["open", "failed", "open"]
        assert search.trials[1].reason == "student failed: the loss is nan"


def test_a_cancelled_search_asks_for_nothing_and_goes_on_when_asked(tmp_path: Path) -> None:
    with begun(tmp_path) as search:
        said = list(cancel("hunt", Root(tmp_path / "runs"), "enough", 0.0))
        assert "hunt asks for no more trials; its own command goes on with it" in said
        assert search.go_on() is None
        assert states(search) == ["open"]
    with begun(tmp_path) as search:
        assert states(search) == ["open"]
        assert stage_of(search, tmp_path, "t0").state()["state"] == "waiting"


def test_a_stage_that_its_user_cancels_is_a_failed_trial(tmp_path: Path) -> None:
    with begun(tmp_path) as search:
        list(cancel(stage_of(search, tmp_path, "t0").path.name, Root(tmp_path / "runs"), "hopeless", 0.0))
        assert search.go_on() is not None
        assert (search.trials[0].state, search.trials[0].reason) == ("failed", "student cancelled: hopeless")


def test_a_suggestion_that_cannot_be_planned_is_a_failed_trial(tmp_path: Path) -> None:
    """The corners, few rows in small batches and many in large ones, are well; few rows in a large batch are not."""
    space = {"stages.student.train.batch_size": [16, 500], "stages.student.data.limit": [200, 640]}
    with pytest.raises(ConfigError, match=r"batch_size: 900 is more than the"):
        search_in(tmp_path, space={"stages.student.train.batch_size": [16, 900]})
    sampler = {"name": "random", "seed": 1}
    with begun(tmp_path, space=space, sampler=sampler, trials=8, parallel=8) as search:
        wrong = [t for t in search.trials if list(t.values.values()) == [200, 500]]
        assert wrong
        assert all(t.state == "failed" and "batch_size" in t.reason for t in wrong)
        assert {t.state for t in search.trials if t not in wrong} == {"open"}


def test_two_commands_do_not_ask_at_once(tmp_path: Path) -> None:
    with begun(tmp_path):
        second = search_in(tmp_path)
        with pytest.raises(StageError, match="is searched already"):
            second.begin(resumed=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"metric": "top1"},
            "sweep.metric: top1: that is a figure of test, and choosing by it flatters what is chosen",
        ),
        ({"metric": "test/nll"}, "sweep.metric: val/nll chooses on validation and shows test"),
        ({"metric": "params"}, "params is no figure of validation: say val/top1"),
        ({"stage": "studnet"}, "sweep.stage: no stage is called studnet; did you mean student?"),
        (
            {"space": {"data.val_fraction": [0.1, 0]}},
            "student has no figure of validation to search by: data.val_fraction is 0",
        ),
    ],
)
def test_what_cannot_be_searched_by(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search_in(tmp_path, **changes)
    assert said in str(caught.value)


def test_a_figure_that_no_stage_has_ends_the_search_at_once(tmp_path: Path) -> None:
    with begun(tmp_path, metric="val/topp1") as search:
        stage = stage_of(search, tmp_path, "t0")
        finish(stage, 0.5)
        stage.write_state(state="running")
        assert search.go_on() is None
        assert "student has no figure val/topp1; did you mean val/top1?" in str(search.problem)


@pytest.mark.parametrize(("metric", "direction"), [("val/top1", "maximize"), ("val/nll", "minimize")])
def test_the_direction_is_by_the_figure_s_nature(tmp_path: Path, metric: str, direction: str) -> None:
    assert search_in(tmp_path, metric=metric).metric.direction == direction
    assert search_in(tmp_path, metric=metric, direction="minimize").metric.direction == "minimize"


def test_a_look_shows_the_first_suggestions_and_writes_nothing(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    plan = search.preview()
    lines = list(preview_lines(search))
    assert [trial.axes["trial"] for trial in plan.trials] == ["t0", "t1", "t2"]
    assert lines[0].startswith(
        "search: 6 trials by val/top1 of student (maximize), 1 at a time; drawn at random, seed 6"
    )
    assert "  t0: lr=0.1188" in lines
    assert expected(search)[0] == 2 + 6  # data and teacher once
    assert not (tmp_path / "runs").exists()
