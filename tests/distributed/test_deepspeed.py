"""ZeRO 0 to 3 over two ranks: DDP's weights bit for bit, resumed bit for bit, refused where they cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import run_on_ranks

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: ./install.sh deepspeed"
)

START = """
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdscale import ranks
from kdscale.api import Batch, Outputs
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.engines.deepspeed import DeepSpeedEngine
from kdscale.errors import CheckpointMismatch, NonFiniteLoss
from tests.unit.train.made_up import batch, strategy

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
rank, world = ranks.rank(), ranks.world()
folder, STEPS = Path(os.environ["FOLDER"]), 20


class Wide(nn.Module):
    # its second layer is large enough for ZeRO 3 to shard, the others are not; its first is frozen
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 3)
        self.first.requires_grad_(False)

    def forward(self, images):
        x = (images.float() / 255).to(memory_format=torch.channels_last)
        return Outputs(self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3))))


def engine(stage, passes=1, **options):
    torch.manual_seed(0)
    ours = strategy(Wide(), passes, weight=30.0).to(memory_format=torch.channels_last).train()
    config = TrainConfig(**{"epochs": 1, "batch_size": 8, "lr": 0.01, "precision": "fp32"} | options)
    if stage is None:
        return DdpEngine(ours, config, steps_per_epoch=STEPS)
    return DeepSpeedEngine(ours, config, zero_stage=stage, steps_per_epoch=STEPS)


def train(on, steps, accumulation=1):
    for step in steps:
        for index, part in enumerate(batch(step).split(world)[rank].split(accumulation)):
            with on.micro(index):
                for pass_ in on.passes:
                    on.update(on.forward(part, {}, pass_).total)
        on.end_step(step)


def weights(on):
    with on.averaged():
        return {name: value.clone() for name, value in on.unwrapped.state_dict().items()}


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def said(error, act):
    try:
        act()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")
"""

EQUAL = """
CASES = [{}, {"nesterov": True, "ema": 0.9}, {"optimizer": "adamw", "lr": 0.001}, {"precision": "bf16"}]
for options in CASES:
    ddp = engine(None, **options)
    train(ddp, range(STEPS))
    for stage in range(4):
        zero = engine(stage, **options)
        train(zero, range(STEPS))
        assert not (odd := differing(weights(zero), weights(ddp))), (options, stage, odd)

first = engine(None)
first.update(first.forward(batch(0).split(world)[rank], {}, "pass0").total)
assert first._optimizer.state[first._parameters[-2]]["momentum_buffer"].norm() > 1, "1.0 would not clip"

twice = engine(None, passes=2)
train(twice, range(3))
for stage in range(4):
    zero = engine(stage, passes=2)
    train(zero, range(3))
    assert not (odd := differing(weights(zero), weights(twice))), (stage, odd)
print("equal")
"""

CLOSE = """
start = weights(engine(None))
for options in ({"grad_clip": 0.1}, {"accumulation": 2}, {"grad_clip": 0.1, "accumulation": 2}):
    ddp = engine(None, weight_decay=0, **options)
    train(ddp, range(1), ddp._train.accumulation)
    for stage in range(4):
        zero = engine(stage, weight_decay=0, **options)
        train(zero, range(1), zero._train.accumulation)
        for name, value in weights(ddp).items():
            torch.testing.assert_close(weights(zero)[name], value, rtol=1e-5, atol=1e-7)
        if "grad_clip" in options:
            moved = [weights(zero)[name] - start[name] for name, _ in zero.unwrapped.named_parameters()]
            norm = torch.cat([change.flatten() for change in moved]).norm().item()
            assert abs(norm - 0.01 * 0.1) < 1e-6, (stage, norm)
print("equal")
"""

SAVE = """
for stage in (None, 0, 1, 2, 3):
    on = engine(stage, ema=0.9, optimizer="adamw", lr=0.001)
    train(on, range(7))
    live = {name: value.clone() for name, value in on.unwrapped.state_dict().items()}
    with on.averaged(), torch.no_grad():  # ranks may look at different numbers of batches
        for step in range(1 + rank):
            on.unwrapped.student.eval()(batch(step).images)
    on.unwrapped.train()
    assert not differing(on.unwrapped.state_dict(), live) or stage == 3
    at = folder / str(stage)
    at.mkdir(exist_ok=True)
    ranks.barrier()
    on.save(at)
    train(on, range(7, STEPS))
    save_file({k: v.contiguous() for k, v in weights(on).items()}, folder / f"end{stage}_{rank}.safetensors")
print("equal")
"""

RESUME = """
def resumed(stage, of):
    on = engine(stage, ema=0.9, optimizer="adamw", lr=0.001)
    on.load(folder / str(of))
    train(on, range(7, STEPS))
    return differing(weights(on), load_file(folder / f"end{of}_{rank}.safetensors"))


for stage, of in ((None, None), (0, 0), (1, 1), (2, 2), (3, 3), (0, None), (None, 0)):
    assert not (odd := resumed(stage, of)), (stage, of, odd)
for rank_ in range(2):  # what all stages end with is the same too
    ends = [load_file(folder / f"end{stage}_{rank_}.safetensors") for stage in (None, 0, 1, 2, 3)]
    assert not any(differing(end, ends[0]) for end in ends)

message = said(CheckpointMismatch, lambda: engine(1).load(folder / "2"))
assert "written by ZeRO 2 over 2 processes, and this is ZeRO 1 over 2 processes" in message, message
assert "engine.name=deepspeed engine.zero_stage=2 engine.processes=2" in message, message
assert "shards nothing" in said(CheckpointMismatch, lambda: engine(None).load(folder / "3"))
assert "Give engine.zero_stage=0" in said(CheckpointMismatch, lambda: engine(3).load(folder / "0"))
print("equal")
"""

ALONE = """
for of in (None, 0):
    on = engine(0, ema=0.9, optimizer="adamw", lr=0.001)
    on.load(folder / str(of))
    saved = load_file(folder / str(of) / "training.safetensors")
    for name, value in on.unwrapped.named_parameters():
        assert torch.equal(value.detach(), saved[f"parameter.{name}"]), name
    assert on._step == 7
    train(on, range(7, 9))
assert "over 2 processes, and this is ZeRO 2 over 1 processes" in said(
    CheckpointMismatch, lambda: engine(2).load(folder / "2")
)
print("equal")
"""

NOT_FINITE = """
def poison(on, step):
    with on.micro(0):
        loss = on.forward(batch(step).split(world)[rank], {}, "pass0").total
        on.update(loss * (float("inf") if rank == 1 else 1.0))


for stage in (None, 0, 1, 2, 3):
    on = engine(stage, on_nonfinite="skip")
    train(on, range(2))
    before = weights(on)
    poison(on, 9)
    assert on.left_out, stage
    on.end_step(2)
    assert not (odd := differing(weights(on), before)), (stage, odd)
    train(on, range(3, 5))
    assert not on.left_out and all(value.isfinite().all() for value in weights(on).values())
    if stage is None:
        expected = weights(on)
    assert not (odd := differing(weights(on), expected)), (stage, odd)

for stage in (1, 2, 3):
    on = engine(stage)
    train(on, range(2))
    assert "the gradient of step 2 is not finite" in said(NonFiniteLoss, lambda: poison(on, 9))
print("equal")
"""

END = """
ranks.barrier()
sys.stdout.flush()
os._exit(0)  # past the interpreter's own exit, where gloo's threads sometimes abort
"""


PADDED = """
on = engine(3, ema=0.9)
train(on, range(2))
sizes = [(p.ds_tensor.numel(), p.ds_numel) for p in on._parameters]
behind = [max(0, min(size, (rank + 1) * size - whole)) for size, whole in sizes]
assert rank == 0 or any(behind), "no parameter ends within a shard"
for parameter, count in zip(on._parameters, behind, strict=True):
    if count:
        parameter.ds_tensor.data[-count:] = float("nan")  # what memory may hold where nothing was written
folder.joinpath("padded").mkdir(exist_ok=True)
ranks.barrier()
on.save(folder / "padded")
assert all(ema.isfinite().all() for ema in on._ema)
print("equal")
"""


def run(program: str, root: Path, folder: Path, world: int = 2) -> None:
    """Run a program on `world` ranks; each must print nothing but `equal`."""
    run_on_ranks(
        START + program + END, root, world=world, within_s=200, PYTHONPATH=str(root), FOLDER=str(folder),
        PATH="/nowhere", TORCH_EXTENSIONS_DIR=str(folder / "none"),  # no compiler, and nothing compiled before
    )  # fmt: skip


@pytest.mark.parametrize("program", [EQUAL, CLOSE, NOT_FINITE], ids=["equal", "close", "not-finite"])
def test_an_update_is_ddps(program: str, root: Path, tmp_path: Path) -> None:
    """Without a compiler anywhere in sight, and with nothing said on stdout."""
    run(program, root, tmp_path)


def test_what_lies_behind_the_last_weight_of_a_shard_is_no_weight(root: Path, tmp_path: Path) -> None:
    run(PADDED, root, tmp_path)


def test_other_processes_go_on_bitwise(root: Path, tmp_path: Path) -> None:
    for program in (SAVE, RESUME):
        run(program, root, tmp_path)
    run(ALONE, root, tmp_path, world=1)
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in {"", ".safetensors", ".json"}]


SWEEP = """
name: engines
data: {name: synthetic, val_fraction: 0.1, options: {train_rows: 360, size: 16}, loader: torch}
train: {epochs: 2, batch_size: 32, lr: 0.05, ema: 0.9, precision: fp32, checkpoint_every_steps: 5}
engine: {name: deepspeed, processes: 2}
limits: {parallel: 1}
tracking: {uri: off}
stages: {student: {student: {model: resnet_cifar, depth: 8}, losses: [{name: ce}]}}
"""


def test_a_sweep_over_stages_exports_the_same_weights(root: Path, tmp_path: Path) -> None:
    """Validated, tested and exported are the averaged weights, wherever their parts lie in between."""
    config, runs = tmp_path / "engines.yaml", tmp_path / "runs"
    config.write_text(SWEEP)
    command = [sys.executable, "launch/sweep.py", str(config), "engine.zero_stage=0,3", "--runs", str(runs)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    stages = sorted(runs.glob("stages/student-*"))
    shards = [len(list(stage.glob("checkpoints/step_*20/shard_*"))) for stage in stages]
    assert sorted(shards) == [0, 2]
    for snapshot in ("last", "best"):
        one, other = (load_file(stage / "snapshots" / snapshot / "student.safetensors") for stage in stages)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), snapshot
    one, other = (json.loads((stage / "state.json").read_text())["results"] for stage in stages)
    same = ("params", "top1", "nll", "best_epoch", "best_top1")
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert one["params"] > 0
