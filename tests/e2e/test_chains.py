"""Pipelines of networks that teach each other, run small on Fashion-MNIST itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan
from tests.matrix import MATRIX
from tests.small_sweep import untimed_metrics
from tests.unit.data.places import FASHION

pytestmark = pytest.mark.skipif(not FASHION.is_dir(), reason=f"no Fashion-MNIST in {FASHION}")
SMALL = [
    "data.limit=192", "data.limit_test=64", "data.val_fraction=0.002", "data.loader=torch", "train.epochs=1",
    "train.batch_size=32", "train.precision=fp32", "train.log_every_steps=2", "engine.processes=1",
]  # fmt: skip
"""A small split besides: a network is judged by it, and its teachers answer it, after each epoch."""
CASES = {
    "blkd": ["stages.teacher.student.depth=14"],
    "dgkd": ["dense.path=[r20,r14,r8]"],
    "gskd": ["grow.path=[r14,r8,r20]", "grow.rounds=2"],
    "rekd": ["stages.large.student.depth=14"],
    "dekd": ["stages.teacher.student.depth=14", "stages.student.teachers.teacher.from=teacher@acc:0.05"],
    "tfkd_self": ["chain.networks.first.depth=8", "chain.networks.again.depth=8"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """One for all: the data is converted once, and equal teachers are trained once."""
    return Root(tmp_path_factory.mktemp("runs"))


def run(root: Root, config: Path, *overrides: str) -> Plan:
    """Run a config to its end in this process."""
    plan = make_plan(load(config, [*SMALL, *overrides]), root)
    prepare_folders(root, plan, retry_failed=False)
    states = run_inline(root, plan, lambda line: None)
    assert set(states.values()) == {"done"}, {plan.stages[digest].name: state for digest, state in states.items()}
    return plan


def folder_of(root: Root, plan: Plan, stage: str) -> StageFolder:
    found = root.stage(plan.trials[0].stages[stage])
    assert found is not None
    return found


def trained_finitely(folder: StageFolder) -> None:
    losses = [line["train/loss"] for line in untimed_metrics(folder) if "train/loss" in line]
    assert losses
    assert all(map(math.isfinite, losses))


@MATRIX
def test_assistants_of_two_paths_share_what_is_equal(runs: Root, root: Path) -> None:
    config = root / "configs" / "pipelines" / "takd.yaml"
    small = ["chain.networks.r26.depth=14", "chain.networks.r14.depth=8"]
    short = run(runs, config, *small, "chain.path=[r26,r8]")
    before = folder_of(runs, short, "r26").state()
    plan = run(runs, config, *small, "chain.path=[r26,r14,r8]")
    assert folder_of(runs, plan, "r26").state() == before
    assert [stage.name for stage in plan.todo] == ["r14-cache", "r8"]  # what was the student is the assistant now
    for name in plan.trials[0].stages:
        trained_finitely(folder_of(runs, plan, name))


def test_a_virtual_teacher_is_heard_and_no_network_asked(runs: Root, root: Path) -> None:
    plan = run(runs, root / "configs" / "pipelines" / "tfkd_reg.yaml", "stages.student.student.depth=8")
    folder = folder_of(runs, plan, "student")
    trained_finitely(folder)
    norms = {t["id"]: t["gradient_norm"] for t in json.loads((folder.path / "step0.json").read_text())["terms"]}
    assert norms.keys() == {"ce", "kd"}
    assert all(norm > 0 for norm in norms.values())
    assert folder.state()["results"]["agreement"] == {}


@MATRIX
@pytest.mark.parametrize("name", CASES)
def test_every_pipeline_runs_to_its_end(name: str, runs: Root, root: Path) -> None:
    plan = run(runs, root / "configs" / "pipelines" / f"{name}.yaml", *CASES[name])
    for stage in plan.trials[0].stages:
        trained_finitely(folder_of(runs, plan, stage))


@MATRIX
def test_a_student_needs_its_own_teacher_only(tmp_path: Path, root: Path) -> None:
    """Without the weights of the first teacher the last student of a chain comes out as before."""
    small = ["chain.networks.r26.depth=14", "chain.networks.r14.depth=8", "chain.path=[r26,r14,r8]"]
    runs, config = Root(tmp_path), root / "configs" / "pipelines" / "takd.yaml"
    first = run(runs, config, *small)
    weights = load_file(folder_of(runs, first, "r8").path / "student.safetensors")
    for path in (folder_of(runs, first, "r26").path / "snapshots").rglob("*.safetensors"):
        path.unlink()
    plan = make_plan(load(config, [*SMALL, *small]), runs, fresh=["r8"])
    assert [stage.name for stage in plan.todo] == ["r8"]
    prepare_folders(runs, plan, retry_failed=False)
    assert set(run_inline(runs, plan, lambda line: None).values()) == {"done"}
    again = load_file(folder_of(runs, plan, "r8").path / "student.safetensors")
    assert all((again[name] == weights[name]).all() for name in weights)
