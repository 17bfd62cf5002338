"""The shipped pipeline of a split network, run small: its tail is its teacher's, its parts are made from it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale import atomic
from kdscale.api import DatasetInfo
from kdscale.config.load import load
from kdscale.config.schema import StageSpec
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.nn.build import build_network
from kdscale.nn.split_parts import split_parts
from kdscale.nn.weights import tensors_hash
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan
from kdscale.report.records import SweepRecord
from kdscale.report.results import write_results
from kdscale.report.tables import stage_grid
from tests.e2e.conftest import Make
from tests.e2e.test_kills import KillAt
from tests.matrix import MATRIX
from tests.plugins.drowsy import SLOW_PAIR

Weights = dict[str, torch.Tensor]
MODEL = "model: resnet_cifar, depth: 8, widths: [4, 8, 16]"
SMALL = [
    "data={name: synthetic, options: {train_rows: 288, test_rows: 100, size: 16}}", "engine.processes=1",
    "train={epochs: 2, batch_size: 32, precision: fp32, log_every_steps: 2}", f"stages.teacher.student={{{MODEL}}}",
    f"stages.student.student={{{MODEL}, split_head: {{split_at: stage2, channels: 2, size: 4}}}}",
]  # fmt: skip


def tensors(folder: StageFolder) -> Weights:
    return load_file(folder.path / "student.safetensors")


def tail(weights: Weights) -> str:
    return tensors_hash({name: value for name, value in weights.items() if name.startswith(("stage3.", "head."))})


def test_a_head_is_distilled_and_deployed(tmp_path: Path, root: Path) -> None:
    sweep = load(
        root / "configs" / "pipelines" / "split.yaml",
        [*SMALL, "method=distilled", "stages.again={init_from: student, train: {epochs: 0}}"],
    )
    runs = Root(tmp_path)
    plan = make_plan(sweep, runs)
    prepare_folders(runs, plan, retry_failed=False)
    assert set(run_inline(runs, plan, lambda line: None).values()) == {"done"}
    teacher, student, again = (runs.stage(digest) for digest in plan.trials[0].stages.values())
    assert teacher is not None
    assert student is not None
    assert again is not None
    assert tensors_hash(tensors(again)) == tensors_hash(tensors(student))  # a head that is there is taken, too
    _check_weights(tensors(student), tensors(teacher))
    _check_parts(student)
    _check_report(student, tmp_path / "sweeps" / plan.folder_name, plan)


def _check_weights(weights: Weights, teachers: Weights) -> None:
    assert tail(weights) == tail(teachers)
    assert {name.partition(".")[0] for name in weights} == {"stage2", "stage3", "head"}
    assert not any("terms" in name or "regressor" in name for name in weights)


def _check_parts(student: StageFolder) -> None:
    definition = student.definition()
    spec, info = StageSpec.model_validate(definition["spec"]), DatasetInfo.of(definition["data"]["info"])
    network = build_network(spec.student, info, 16, snapshot=student.snapshot("last")).eval()
    device, server = split_parts(network)
    images = torch.arange(8 * info.channels * 256).view(8, info.channels, 16, 16).mul(37).remainder(251).to(torch.uint8)
    sent = device(images)
    assert torch.equal(server(sent), network(images).logits)
    assert len(server(sent).unique(dim=0)) > 1  # which bytes are sent makes a difference

    wire = student.state()["results"]["extra"]["wire"]
    assert wire["bytes"] == sent[0].numel() == 2 * 4 * 4
    assert wire["input_bytes"] == info.channels * 16 * 16


def _check_report(student: StageFolder, sweep_folder: Path, plan: Plan) -> None:
    extra = student.state()["results"]["extra"]
    assert 0 <= extra["top1_of"]["float_wire"] <= 1
    sweep_folder.mkdir(parents=True)
    atomic.write_json(sweep_folder / "plan.json", plan.document())
    [row] = [row for row in write_results(sweep_folder) if row["stage"] == "student"]
    assert row["extra"]["wire"] == extra["wire"]
    grid = stage_grid(SweepRecord(sweep_folder))
    sent_at = [column.name for column in grid.columns].index("sent B")
    assert [line[sent_at].text for line in grid.rows] == ["–", "32", "32"]


HEADS = [
    "stages.student.student={model: resnet_cifar, depth: 8, split_head: {split_at: stage2, channels: 2, size: 4}}",
    "stages.student.strategy=split_head", "stages.student.init_from=teacher",
    "stages.student.losses=[{name: fitnet, regressor: none, taps: {student: [stage2], teacher: [stage2]}}]",
]  # fmt: skip


@MATRIX
@pytest.mark.parametrize("zero_stage", range(4))
def test_zero_on_two_processes_trains_the_head_that_ddp_trains(zero_stage: int, sandbox: Make) -> None:
    ddp = sandbox("ddp", *HEADS, "engine.processes=2")
    zero = sandbox("zero", *HEADS, "engine.processes=2", "engine.name=deepspeed", f"engine.zero_stage={zero_stage}")
    assert {*ddp.run().values(), *zero.run().values()} == {"done"}
    found, expected = (tensors(box.folder("student")) for box in (zero, ddp))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert tail(found) == tail(tensors(zero.folder("teacher")))


@MATRIX
def test_bitwise_the_same_after_kills(sandbox: Make) -> None:
    slow = ("engine.processes=2", *SLOW_PAIR)
    calm, disturbed = (sandbox(name, *HEADS, *slow) for name in ("calm", "disturbed"))
    assert set(calm.run().values()) == {"done"}
    kill = KillAt([8, 28], signal.SIGKILL, only_rank=None)
    assert set(disturbed.run(kill).values()) == {"done"}
    assert kill.killed == 2
    assert disturbed.weights("student") == calm.weights("student")
    assert disturbed.metrics("student") == calm.metrics("student")
    newest = sorted(calm.folder("student").checkpoints.glob("step_*"))[-1]
    lows = [load_file(newest / f"buffers_rank0000{r}.safetensors")["student.model.stage2.wire.low"] for r in range(2)]
    assert lows[0] != lows[1]
    torch.testing.assert_close(tensors(calm.folder("student"))["stage2.wire.low"], (lows[0] + lows[1]) / 2)
