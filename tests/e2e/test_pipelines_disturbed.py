"""Every shipped pipeline, stopped between stages and each of its stages killed in the middle: the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from kdscale.config.load import load
from kdscale.jobs.local import LocalRun
from kdscale.jobs.prepare import prepare_folders
from kdscale.jobs.warm import WarmParent
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import PlannedStage
from tests.e2e.conftest import Sandbox
from tests.matrix import MATRIX
from tests.small_sweep import untimed_metrics
from tests.unit.data.places import FASHION

PIPELINES = Path(__file__).resolve().parents[2] / "configs" / "pipelines"
FIRST_CHECKPOINT = 2
SMALL = [
    "data.limit_test=64", "train.epochs=1", "train.batch_size=32", "train.warmup_epochs=0", "train.precision=fp32",
    "train.log_every_steps=1", f"train.checkpoint_every_steps={FIRST_CHECKPOINT}", "engine.processes=1",
    "tracking.uri=off",
]  # fmt: skip
ROWS = ["data.limit=256", "data.val_fraction=0.002"]
SCENES = ['data.options={"canvas": 32, "garments": 2, "train_rows": 256, "test_rows": 32}']
OWN: dict[str, Sequence[str]] = {
    # 32 epochs, which its axis says; and its third way makes 6,000 steps of what has no labels
    "compression": ["data.limit=160", "data.val_fraction=0.01", "learns=labels,seen"],
    "dekd": [*ROWS, "stages.student.teachers.teacher.from=teacher@acc:0.05"],
    "fsp": [*ROWS, "train.grad_clip=1"],  # its teacher has learnt for eight steps only, and what it flows is large
    "iakd": [*ROWS, "stages.student.train.epochs=3", "stages.student.options.final_student_phase=1"],
    "segmentation": SCENES,
}
LEFT_OUT = {"fsp_paper", "vit_to_cnn"}
"""fsp at other lengths; and one that needs timm, which is no part of the tests' tools."""
NAMES = sorted({path.stem for path in PIPELINES.glob("*.yaml")} - LEFT_OUT)

pytestmark = pytest.mark.skipif(not FASHION.is_dir(), reason=f"no Fashion-MNIST in {FASHION}")


class KillEach:
    """Kills the workers of every stage once, after its first checkpoint; asks to stop when a first stage is done."""

    def __init__(self) -> None:
        self.killed: set[str] = set()
        self.stopped = False

    def __call__(self, local: LocalRun, box: Sandbox) -> None:
        names = {stage.name for stage in trained(box)}
        if not self.stopped and any(box.folder(name).state().get("state") == "done" for name in names):
            self.stopped = True
            local.ask_to_stop()
        for name, pids in local.workers().items():
            if name in names - self.killed and box.last_step(name) > FIRST_CHECKPOINT:
                self.killed.add(name)
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)


def trained(box: Sandbox) -> list[PlannedStage]:
    return [stage for stage in box.plan.stages.values() if stage.kind == "train" and stage.cost.steps]


def planned(name: str, folder: Path, warm: WarmParent) -> Sandbox:
    """A pipeline on few rows, stages for one epoch where their length is no part of a method."""
    path = PIPELINES / f"{name}.yaml"
    stages = yaml.safe_load(path.read_text()).get("stages") or {}
    longer = [key for key, stage in stages.items() if stage.get("train", {}).get("epochs", 0) > 1]
    sweep = load(path, [*SMALL, *(f"stages.{key}.train.epochs=1" for key in longer), *OWN.get(name, ROWS)])
    root = Root(folder)
    plan = make_plan(sweep, root)
    prepare_folders(root, plan, retry_failed=False)
    return Sandbox(root, plan, warm, [], sweep)


@MATRIX
@pytest.mark.timeout(1200)  # sixteen stages, some of them twice
@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_comes_out_as_undisturbed(name: str, tmp_path: Path, warm: WarmParent) -> None:
    calm, disturbed = (planned(name, tmp_path / root, warm) for root in ("calm", "disturbed"))
    assert set(calm.run().values()) == {"done"}

    kill = KillEach()
    disturbed.run(kill)
    assert kill.stopped
    again = disturbed.planned_again()
    assert set(again.run(kill).values()) == {"done"}

    assert len(kill.killed) > len({stage.name for stage in trained(calm)}) / 2, "the shortest may end too soon"
    for stage in trained(calm):
        ours, theirs = (box.root.stage(stage.digest) for box in (again, calm))
        assert ours is not None
        assert theirs is not None
        assert ours.state()["weights"] == theirs.state()["weights"], stage.name
        assert untimed_metrics(ours) == untimed_metrics(theirs), stage.name
