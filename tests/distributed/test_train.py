"""Training and evaluation over several ranks: as one process of the whole batch, whoever has a row more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import run_on_ranks

START = """
import torch
from kdscale import ranks
from tests.unit.train.made_up import Convolutional, Linear, Oracle, batch, strategy

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
rank, world = ranks.rank(), ranks.world()
"""

EVALUATE = """
from kdscale.api import Batch, Outputs
from kdscale.train.evaluate import Evaluator
from kdscale.train.stop import Stop

ROWS = 33  # rank 0 has 17 rows and so a fifth batch, at which the other has none to be polled after


class Split:
    def __init__(self, rank, world):
        self.rows = torch.arange(ROWS)[rank::world]

    def __iter__(self):
        for rows in self.rows.split(4):
            images = rows.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
            yield Batch(images, rows % 5, rows, view=0)


class LooksUp(torch.nn.Module):
    def forward(self, images):
        rows = images[:, 0, 0, 0].float()
        return Outputs(torch.sin(rows[:, None] * torch.arange(1, 6)))


taught = torch.cos(torch.arange(ROWS)[:, None].float() * torch.arange(1, 6))
evaluator = Evaluator(Split(rank, world), [Oracle("t", taught)], 5, torch.device("cpu"), ROWS)
stop = Stop()
found = evaluator(LooksUp(), interrupted=stop.agreed)
assert found.samples == ROWS, found
if rank == 1:
    stop.ask("preempted")  # the other rank learns of it
assert evaluator(LooksUp(), interrupted=stop.agreed) is None
ranks.barrier()
ranks.leave()
whole = Evaluator(Split(0, 1), [Oracle("t", taught)], 5, torch.device("cpu"), ROWS)(LooksUp())
for name, value in whole.metrics("test").items():
    assert abs(found.metrics("test")[name] - value) < 1e-6, name
assert found.per_class == whole.per_class
print("equal")
"""

TRAIN = """
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine


def trained(steps, accumulation, rank=0, world=1, **options):
    torch.manual_seed(0)
    ours = strategy(Linear().double()).double()
    config = TrainConfig(epochs=1, batch_size=16, precision="fp32", accumulation=accumulation, **options)
    engine = DdpEngine(ours, config, steps_per_epoch=10)
    for step in range(steps):
        mine = batch(step, count=16).split(world)[rank]
        for index, part in enumerate(mine.split(accumulation)):
            with engine.micro(index):
                engine.update(engine.forward(part, {}, "pass0").total)
        engine.end_step(step)
    return ours.state_dict()


OPTIONS = [dict(), dict(grad_clip=0.05), dict(optimizer="adamw", lr=0.01)]
over_all = [trained(6, accumulation, rank, world, **o) for o in OPTIONS for accumulation in (1, 2)]
ranks.leave()
alone = [trained(6, 1, **o) for o in OPTIONS for _ in (1, 2)]
for several, one in zip(over_all, alone, strict=True):
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-11, atol=1e-13)
print("equal")
"""

CHECKPOINT = """
import errno, os
from pathlib import Path
import kdscale.checkpoint as checkpoint
from kdscale.errors import CheckpointError, NonFiniteLoss
from kdscale.api import Losses
from kdscale.train.metrics import Meter

folder = Path(os.environ["FOLDER"])
loop = {"step": 7, "digest": "d"}
write = lambda at: (at / f"rank{rank}").write_text(f"{rank}")
checkpoint.save(folder, loop, write, keep=2, is_mine=lambda: True)
assert checkpoint.load(folder, "d", lambda at: None) == loop
assert {p.name for p in (folder / "step_00000007").iterdir()} == {"rank0", "rank1", "loop.json", "manifest.json"}


def fails_on_rank_1(at):
    if rank == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    write(at)


try:
    checkpoint.save(folder, loop | {"step": 14}, fails_on_rank_1, keep=2, is_mine=lambda: True)
except CheckpointError as error:
    assert "step_00000007 is whole" in str(error), error
else:
    raise AssertionError("rank 0 did not learn of it")
ranks.barrier()
assert [p.name for p in folder.iterdir()] == ["step_00000007"]

meter = Meter(["ce"], torch.device("cpu"))
for step in range(3):
    value = torch.tensor(float("nan") if (rank, step) == (1, 2) else 1.0)
    meter.add({"main": Losses(value, {"ce": value})}, step)
try:
    meter.read()
except NonFiniteLoss as error:
    assert "term ce became nan or inf at step 2 on rank 1" in str(error), error
else:
    raise AssertionError("not noticed")
ranks.barrier()
ranks.leave()
print("equal")
"""


@pytest.mark.parametrize("program", [EVALUATE, TRAIN, CHECKPOINT], ids=["evaluate", "train", "checkpoint"])
def test_two_ranks(program: str, root: Path, tmp_path: Path) -> None:
    run_on_ranks(START + program, root, PYTHONPATH=str(root), FOLDER=str(tmp_path / "checkpoints"))


@pytest.mark.parametrize("world", [4, 8])
def test_more_ranks_than_most_machines_have_cores(world: int, root: Path) -> None:
    run_on_ranks(START + TRAIN, root, world=world, PYTHONPATH=str(root))
