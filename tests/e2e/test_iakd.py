"""The pipeline of interactive distillation, run small: interrupted it gives the same bits, and a pure student."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale.config.load import load
from kdscale.jobs.inline import run_one
from kdscale.jobs.prepare import prepare_folders
from kdscale.models.resnet_cifar import ResNetCifar
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan, PlannedStage
from kdscale.train.stop import Stop, StopAfter
from tests.e2e.conftest import Make
from tests.e2e.test_kills import KillAt
from tests.matrix import MATRIX
from tests.plugins.drowsy import SLOW_PAIR
from tests.small_sweep import untimed_metrics

SMALL = [
    "data.name=synthetic", "data.options={train_rows: 224, test_rows: 60, size: 16}", "train.epochs=1",
    "train.batch_size=32", "train.precision=fp32", "train.log_every_steps=1", "engine.processes=1",
    "train.checkpoint_every_steps=4", "stages.teacher.student.depth=14", "stages.teacher.student.widths=[4, 8, 16]",
    "stages.student.student.depth=8", "stages.student.student.widths=[4, 6, 16]", "stages.student.train.epochs=2",
    "stages.student.options.final_student_phase=0", "stages.student.options.p_student=0.4",
]  # fmt: skip


def planned(config: Path, runs: Path) -> tuple[Root, Plan]:
    root = Root(runs)
    plan = make_plan(load(config, SMALL), root)
    prepare_folders(root, plan, retry_failed=False)
    return root, plan


def student_of(root: Root, plan: Plan) -> tuple[PlannedStage, StageFolder]:
    stage = plan.stages[plan.trials[0].stages["student"]]
    folder = root.stage(stage.digest)
    assert folder is not None
    return stage, folder


def test_interrupted_and_resumed_it_gives_the_same_student(tmp_path: Path, root: Path) -> None:
    torch.set_num_threads(1)
    calm, plan = planned(root / "configs" / "pipelines" / "iakd.yaml", tmp_path / "calm")
    stage, folder = student_of(calm, plan)
    for parent in (one for one in plan.stages.values() if one is not stage):
        assert run_one(calm, parent, Stop()) == "done"
    shutil.copytree(tmp_path / "calm", tmp_path / "disturbed")
    assert run_one(calm, stage, Stop()) == "done", folder.state()

    disturbed = Root.find(tmp_path / "disturbed")
    _, other = student_of(disturbed, plan)
    assert [run_one(disturbed, stage, StopAfter(steps)) for steps in (3, 6)] == ["interrupted"] * 2
    assert run_one(disturbed, stage, Stop()) == "done"
    assert (folder.path / "student.safetensors").read_bytes() == (other.path / "student.safetensors").read_bytes()
    lines = untimed_metrics(folder)
    assert lines == untimed_metrics(other)
    _check_figures(lines)
    _check_files(folder)


def _check_figures(lines: list[dict[str, float]]) -> None:
    steps = [line for line in lines if "train/p_student" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[0]["train/p_student"] == steps[6]["train/p_student"] == pytest.approx(0.4), "it starts again half way"
    ran = [line["train/student_ran/stage2.0"] for line in steps]
    assert set(ran) == {0.0, 1.0}


def _check_files(folder: StageFolder) -> None:
    """The student alone leaves the stage; its connectors are saved to go on, the teacher is not."""
    own = ResNetCifar(classes=10, depth=8, widths=[4, 6, 16], channels=3)
    exported = load_file(folder.path / "student.safetensors")
    assert exported.keys() == own.state_dict().keys()
    newest = sorted(folder.checkpoints.glob("step_*"))[-1]
    saved = [name for name in load_file(newest / "training.safetensors") if name.startswith("parameter.")]
    students = {f"parameter.student.model.{name}" for name, _ in own.named_parameters()}
    others = set(saved) - students
    assert others < set(saved)
    assert others
    assert all(name.startswith("parameter.connectors.stage") for name in others)
    buffers = load_file(newest / "buffers_rank00000.safetensors")
    mean = "stage2.0.bn1.running_mean"
    assert not torch.equal(buffers[f"student.model.{mean}"], exported[mean]), "exported as measured anew"
    assert json.loads((folder.path / "state.json").read_text())["results"]["top1"] > 0


MIXED = [
    "stages.teacher.student.depth=14", "stages.teacher.student.widths=[4, 8, 16]", "stages.student.strategy=iakd",
    "stages.student.options={p_student: 0.5}", "stages.student.student.widths=[4, 6, 16]", *SLOW_PAIR,
]  # fmt: skip


@MATRIX
@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
@pytest.mark.parametrize(("world", "steps", "only_rank"), [(1, [8, 16], None), (2, [12], 1), (2, [8, 28], None)])
def test_bitwise_the_same_after_kills(
    sandbox: Make, world: int, steps: list[int], only_rank: int | None, engine: str
) -> None:
    overrides = [f"engine.processes={world}", f"stages.student.engine.name={engine}", *MIXED]
    calm, disturbed = sandbox("calm", *overrides), sandbox("disturbed", *overrides)
    assert set(calm.run().values()) == {"done"}
    kill = KillAt(steps, signal.SIGKILL, only_rank=only_rank)
    assert set(disturbed.run(kill).values()) == {"done"}
    assert kill.killed == len(steps)
    assert disturbed.weights("student") == calm.weights("student")
    assert disturbed.metrics("student") == calm.metrics("student")
