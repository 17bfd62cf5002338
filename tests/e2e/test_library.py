"""kdscale from Python, as a script or a notebook uses it."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import kdscale as kd
from kdscale.errors import CheckpointError, ConfigError, StageError
from kdscale.jobs.exporting import Wish, export
from kdscale.library.sweep_run import SweepRun
from kdscale.pipeline.artifacts import Root
from tests.e2e.conftest import EXPERIMENT
from tests.plugins.drowsy import SLOW_STUDENT

SWEPT = ("seed=0,1", "stages.teacher.seed=0", "train.epochs=1", "engine.processes=1")
ALONE = ("stages.student=null", "stages.teacher.student.widths=[4,8,16]", "tracking.uri=off")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT | {"tracking": {"uri": "off"}}))
    return file


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def until(true: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sweep_is_planned_run_and_read(config: Path, place: Path) -> None:
    experiment = kd.load(config, *SWEPT, runs=place)
    assert repr(experiment) == f"Experiment('small', 2 trials, runs in {place})"
    assert "4 unique stages: 4 to run" in repr(experiment.plan())
    assert not place.exists(), "looking writes nothing"

    run = experiment.run().wait()
    assert set(run.states.values()) == {"done"}
    assert "small:student[s1]" in run.states
    assert "done 4" in repr(run.status())
    frame = run.frame()
    assert sorted(frame["trial.seed"][frame["stage"] == "student"]) == ["0", "1"]
    assert run.rows() == json.loads((run.path / "results.json").read_text())

    best = run.best("val/top1")
    assert best.name in ("small:student[s0]", "small:student[s1]")
    epochs, losses = best.curves["train/loss"]
    assert len(epochs) == len(losses) > 0
    assert best.config["train"]["epochs"] == 1
    with pytest.raises(ConfigError, match="choosing by it flatters"):
        run.best("top1")
    with pytest.raises(ConfigError, match="has 2 final stages: name one"):
        run.model()

    again = kd.load(config, *SWEPT, runs=place).run().wait()
    assert "4 reused" in repr(experiment.plan())
    assert len(json.loads((again.stage("student[s1]").path / "state.json").read_text())["attempts"]) == 1


def test_work_is_found_again(config: Path, place: Path) -> None:
    kd.load(config, *SWEPT, runs=place).run(cluster="inline")
    runs = kd.runs(place)
    (found,) = runs.find(seed=1)
    assert (found.name, found.axes) == ("small:student[s1]", {"seed": "1"})
    assert found.figures["top1"] == found.results["top1"]
    assert runs.find(seed=2) == []
    assert [stage.name for stage in runs.find("teacher", where="params_m < 1")] == ["small:teacher"]
    assert runs.find(where="params_m > 1") == []
    with pytest.raises(ConfigError, match=r"seeds: no sweep in .* has such an axis; did you mean seed"):
        runs.find(seeds=1)
    assert runs.sweep("small").stage("student[s1]").digest == found.digest == runs.stage(found.digest[:8]).digest


def test_its_network_is_a_plain_module(config: Path, place: Path) -> None:
    run = kd.load(config, *ALONE, runs=place).run(cluster="inline")
    network = run.model()
    weights = load_file(run.stage("teacher").path / "student.safetensors")
    assert {name: tensor.dtype for name, tensor in network.state_dict().items()}.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert not network.training
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
    logits = network(network.preprocess(list(pictures)))
    assert logits.shape == (2, len(network.classes))
    same = kd.load("small:teacher", runs=place)
    assert torch.equal(same(same.preprocess(list(pictures))), logits)

    folder = export(Root(place), Wish("small:teacher", out=place / "exports", formats=["pt2"]), print)
    exported = kd.load(folder)
    torch.testing.assert_close(exported(exported.preprocess(list(pictures))), logits, rtol=1e-4, atol=1e-4)
    assert exported.classes == network.classes
    (folder / "model.json").write_text((folder / "model.json").read_text() + "\n")
    with pytest.raises(CheckpointError, match=r"model\.json is not what was exported"):
        kd.load(folder)


def test_inline_leaves_the_process_as_it_was(config: Path, place: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    experiment = kd.load(config, *ALONE, runs=place)
    experiment.run(cluster="inline")
    assert torch.equal(torch.rand(2), wanted)
    assert torch.get_num_threads() == threads
    raised: list[Exception] = []

    def elsewhere() -> None:
        try:
            experiment.run(cluster="inline")
        except ConfigError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert 'use "local"' in str(raised[0])


def test_it_is_stopped_and_goes_on(config: Path, place: Path) -> None:
    slow = (*SLOW_STUDENT, "stages.teacher.train.epochs=1", "stages.student.train.epochs=20")
    run = kd.load(config, *slow, runs=place).run()
    until(lambda: run.path.joinpath("plan.json").exists())
    until(lambda: run.states["small:student"] == "running" and "train/loss" in run.stage("student").curves)
    with pytest.raises(TimeoutError):
        run.wait(timeout_s=0.0)
    assert run.states["small:student"] == "running", "who stops waiting stops nothing"
    run.stop()
    assert run.over
    assert run.states["small:student"] == "interrupted"
    assert "stopped; the same command goes on from here" in run.log
    gone_on: SweepRun = kd.load(config, *slow, runs=place).run().wait()
    assert gone_on.states["small:student"] == "done"
    attempts = json.loads((gone_on.stage("student").path / "state.json").read_text())["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["interrupted", "done"]
    assert attempts[1]["resumed_from"] > 0


def test_what_fails_is_told_where_it_is_asked_for(config: Path, place: Path) -> None:
    run = kd.load(config, "stages.teacher.train.lr=1e30", runs=place).run().wait()
    assert run.states["small:teacher"] == "failed"
    assert run.states["small:student"] == "blocked"
    assert "nan or inf" in run.stage("teacher").reason
    with pytest.raises(ConfigError, match="val/top1"):
        run.best("val/top1")
    with pytest.raises(StageError, match="is failed: only what is done has a network"):
        run.model("teacher")


def test_what_cannot_begin_says_so(config: Path, place: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean kd"):
        kd.load(config, "stages.student.losses=[{name: kdd}]", runs=place)
    with pytest.raises(ConfigError, match="nothing that seed=1 could override"):
        kd.load("small:student", "seed=1", runs=place)
    with pytest.raises(ConfigError):
        kd.load("nobody:student", runs=place)
    many = kd.load(config, *ALONE, "seed=range(101)", runs=place).run()
    with pytest.raises(ConfigError, match=r"102 stages to run.*say --yes"):
        many.wait()


class Net(nn.Module):
    """A user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 2, 1)
        self.head = nn.Linear(width * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().flatten(1))  # type: ignore[no-any-return]


DATA: dict[str, Any] = {"name": "synthetic", "options": {"train_rows": 256, "test_rows": 64, "size": 16}}


def test_live_modules_are_distilled(place: Path) -> None:
    student, teacher = Net(4), Net(8)
    before, theirs = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    hint = {"name": "fitnet", "weight": 0.1, "taps": {"student": ["conv"], "teacher": ["conv"]}}
    found = kd.distill(
        student, teacher, DATA, ["ce", ("kd", 0.5), hint], epochs=2, train={"batch_size": 32, "lr": 0.01}, runs=place
    )
    assert found.student is student
    assert not torch.equal(student.head.weight, before["head.weight"])
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in teacher.state_dict().items())
    assert student.state_dict().keys() == before.keys()
    assert 0 <= (found.figures["top1"] or -1) <= 1
    assert "train/term/fitnet" in found.curves
    assert found.teachers["teacher"]["top1"] is not None
    assert not place.exists(), "nothing of it is kept"


def test_a_distillation_that_fails_leaves_the_student_as_it_was(place: Path) -> None:
    student, teacher = Net(4), Net(8)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ConfigError, match=r"^distill: stages\.student\.losses\.kdd.*did you mean kd"):
        kd.distill(student, teacher, DATA, ["kdd"], runs=place)
    with pytest.raises(StageError, match="nan or inf"):
        kd.distill(student, teacher, DATA, epochs=1, train={"batch_size": 32, "lr": 1e30}, runs=place)
    with pytest.raises(ConfigError, match="may not be called student"):
        kd.distill(student, {"student": teacher}, DATA, runs=place)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
