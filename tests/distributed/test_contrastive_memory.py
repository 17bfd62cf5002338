"""The memory of crd: the same on all ranks, saved, and taken up by any number of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import run_on_ranks
from tests.matrix import MATRIX

START = """
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kdscale import ranks
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.nn.negatives import draw_negatives
from tests.distributed.one_process import COUNT, Case, batch, made, seeded

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
folder = Path(os.environ["FOLDER"])
teacher = seeded(1, (6, 10), norm=False)
strategy = made(Case("crd", {"dimensions": 4, "negatives": 7}), norm=False)
engine = DdpEngine(strategy, TrainConfig(epochs=1, batch_size=COUNT, precision="fp32", lr=0.1), steps_per_epoch=10)
share = COUNT // ranks.world()


def train(steps):
    for step in steps:
        mine = batch(step).split(ranks.world())[ranks.rank()]
        with engine.micro(0):
            engine.update(engine.forward(mine, {"t": teacher(mine.images)}, "main").total)
        engine.end_step(step)


def state():
    return {name: value.clone() for name, value in strategy.state_dict().items()}
"""

SAVE = """
before = state()
train(range(4))
memory = {name: value for name, value in state().items() if name in dict(strategy.named_buffers())}
assert memory.keys() == {f"terms.term.{name}" for name in ("memory_s", "memory_t", "labels", "log_z")}
for name, value in memory.items():
    assert not torch.equal(value, before[name]), name
    assert all(torch.equal(value, other) for other in ranks.gather_objects(value)), name

labels = strategy.terms["term"].labels
drawn = torch.cat(ranks.gather_objects(draw_negatives(batch(4).split(ranks.world())[ranks.rank()], labels, 9)))
assert torch.equal(drawn, draw_negatives(batch(4), labels, 9))

engine.save(folder)
save_file(memory, folder / f"memory{ranks.rank()}.safetensors")
train(range(4, 6))
if ranks.rank() == 0:
    save_file(state(), folder / "end.safetensors")
ranks.barrier()
ranks.leave()
print("equal")
"""

RESUME = """
engine.load(folder)
for name, value in load_file(folder / "memory0.safetensors").items():
    assert torch.equal(state()[name], value), name
train(range(4, 6))
for name, value in load_file(folder / "end.safetensors").items():
    torch.testing.assert_close(state()[name], value, rtol=1e-9, atol=1e-12)
ranks.barrier()
ranks.leave()
print("equal")
"""


@pytest.mark.parametrize("after", [1, pytest.param(4, marks=MATRIX)])
def test_another_number_of_ranks_takes_it_up(after: int, root: Path, tmp_path: Path) -> None:
    run_on_ranks(START + SAVE, root, world=2, FOLDER=str(tmp_path))
    run_on_ranks(START + RESUME, root, world=after, FOLDER=str(tmp_path))
