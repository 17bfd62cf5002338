"""An on-the-fly ensemble as a user runs it: its export is the baseline's network, killed or not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdscale.config.load import load
from kdscale.errors import KDScaleError
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.e2e.conftest import Make
from tests.e2e.test_kills import KillAt
from tests.matrix import MATRIX
from tests.plugins.drowsy import SLOW_STUDENT
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN, untimed_metrics

STUDENT = {"student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 8]}, "losses": [{"name": "ce"}]}


def one(**options: Any) -> dict[str, Any]:
    return STUDENT | {"strategy": "one", "options": options}


def written(folder: Path, stages: dict[str, Any]) -> Path:
    data = SMALL_DATA | {"options": SMALL_DATA["options"] | {"train_rows": 144}, "loader": "torch"}
    document = {
        "name": "one",
        "data": data,
        "train": SMALL_TRAIN | {"epochs": 1, "log_every_steps": 2},
        "engine": {"processes": 1},
    }
    config = folder / "one.yaml"
    config.write_text(yaml.safe_dump(document | {"stages": stages}))
    return config


def test_one_stage_from_config_to_results(tmp_path: Path) -> None:
    stages = {
        "baseline": STUDENT,
        "reduced": one(branches=1, loss_scale=0.5),
        "student": one(branches=3),
        "whole": one() | {"student": STUDENT["student"] | {"branches": {"count": 3}}},
        "follower": STUDENT | {"teachers": {"teacher": {"from": "whole"}}, "losses": [{"name": "kd"}]},
    }
    root = Root(tmp_path / "runs")
    plan = make_plan(load(written(tmp_path, stages)), root)
    prepare_folders(root, plan, retry_failed=False)
    assert set(run_inline(root, plan, lambda line: None).values()) == {"done"}

    folders = {name: folder for name, d in plan.trials[0].stages.items() if (folder := root.stage(d)) is not None}
    baseline, reduced, student, whole, follower = (
        load_file(folders[name].path / "student.safetensors") for name in stages
    )
    assert [name for name, value in baseline.items() if not torch.equal(reduced[name], value)] == []
    assert {k: v.shape for k, v in student.items()} == {k: v.shape for k, v in baseline.items()}
    state, metrics = folders["student"].state(), untimed_metrics(folders["student"])
    beside = {"branch0", "branch1", "branch2", "ensemble"}
    assert set(state["results"]["extra"]["top1_of"]) == beside
    assert state["results"]["top1"] == state["results"]["extra"]["top1_of"]["branch0"]
    assert {f"val/top1_of/{name}" for name in beside} <= {key for line in metrics for key in line}
    measured = {"train/distillation", "train/gate/entropy", *(f"train/gate/branch{i}" for i in range(3))}
    assert measured <= {key for line in metrics for key in line}
    first = json.loads((folders["student"].path / "step0.json").read_text())["terms"]
    assert [term["id"] for term in first] == ["ce", "distillation"]
    assert all(term["gradient_norm"] > 0 for term in first)

    assert [name for name, value in student.items() if not torch.equal(whole[name], value)] == []
    assert {name.partition(".")[0] for name in set(whole) - set(student)} == {"native_ensemble"}
    results = folders["whole"].state()["results"]
    assert results["top1"] == results["extra"]["top1_of"]["ensemble"]
    assert results["extra"]["top1_of"] == state["results"]["extra"]["top1_of"]
    assert results["params"] > state["results"]["params"]
    assert follower.keys() == baseline.keys()


CONFIG = Path(__file__).resolve().parents[2] / "configs" / "pipelines" / "one.yaml"


def test_the_shipped_config_can_be_planned(tmp_path: Path) -> None:
    plan = make_plan(load(CONFIG), Root(tmp_path))
    baseline, student = (plan.stages[digest] for digest in plan.trials[0].stages.values())
    assert student.cost.params == baseline.cost.params
    assert student.cost.flops == baseline.cost.flops
    assert 1.5 < student.cost.train_flops / baseline.cost.train_flops < 2  # the last stage, three times
    assert student.definition["frozen"] == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("options.branchs=4", "stages.student.options.branchs: unknown key; did you mean branches?"),
        ("options.branches=0", "stages.student.options.branches: Input should be greater than or equal to 1"),
        ("options.split_at=stage9", "stages.student: ResNetCifar has no tap stage9; did you mean stage3"),
        ("options.split_at=head", "stages.student: split_at: head is the end of ResNetCifar"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_planned(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(KDScaleError) as refused:
        make_plan(load(CONFIG, [f"stages.student.{override}"]), Root(tmp_path))
    assert said in str(refused.value)


ENSEMBLE = [
    "stages.student.strategy=one", "stages.student.options.branches=3", "train.epochs=2", *SLOW_STUDENT,
]  # fmt: skip


@MATRIX
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_it_ends_as_undisturbed(sandbox: Make, world: int, number: signal.Signals) -> None:
    overrides = [*ENSEMBLE, f"engine.processes={world}"]
    calm, disturbed = sandbox("calm", *overrides), sandbox("disturbed", *overrides)
    assert set(calm.run().values()) == {"done"}

    kill = KillAt([8, 28], number)
    assert set(disturbed.run(kill).values()) == {"done"}

    assert kill.killed == 2
    assert disturbed.weights("student") == calm.weights("student")
    assert disturbed.metrics("student") == calm.metrics("student")
    results = [run.folder("student").state()["results"] for run in (calm, disturbed)]
    assert results[0]["extra"] == results[1]["extra"]
