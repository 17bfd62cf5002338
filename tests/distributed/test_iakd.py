"""Parts that train in turns, over two ranks: the same draws, the same updates on both engines."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed.ranks import run_on_ranks

START = """
import torch
from kdscale import ranks
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.engines.deepspeed import DeepSpeedEngine
from kdscale.teachers.network import NetworkTeacher
from tests.unit.strategies.mixtures import mixture, noise

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
rank, world = ranks.rank(), ranks.world()
KD = {"main": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}]}
TRAIN = TrainConfig(epochs=10, batch_size=8, precision="fp32", lr=0.05)


def trained(steps, make, watch=lambda *_: None, **stage):
    built = mixture(passes=KD, **stage)
    engine = make(built.strategy.train())
    teacher = NetworkTeacher("t", built.teachers["t"], device=torch.device("cpu"), precision="fp32")
    for step in range(steps):
        batch = noise(step).split(world)[rank]
        with torch.no_grad():
            taught = {"t": teacher(batch)}
        before = state(built)
        with engine.micro(0):
            engine.update(engine.forward(batch, taught, "main").total)
        engine.end_step(step)
        watch(built, step, before)
    return state(built) | {f"momentum.{i}": s["momentum_buffer"].clone() for i, s in momenta(engine)}


def momenta(engine):
    found = [engine._optimizer.state.get(p, {}) for p in engine._parameters]
    return [(i, s) for i, s in enumerate(found) if s.get("momentum_buffer") is not None]


def state(built):
    return {name: tensor.clone() for name, tensor in built.strategy.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def ddp(strategy):
    return DdpEngine(strategy, TRAIN, steps_per_epoch=1)


def zero(strategy):
    return DeepSpeedEngine(strategy, TRAIN, zero_stage=0, steps_per_epoch=1)


sizes = set()


def untouched(built, step, before):
    away = tuple(f"student.model.{unit.path}." for unit in built.strategy.replaced(step))
    sizes.add(len(away))
    drawn = torch.tensor([float(u in built.strategy.replaced(step)) for u in built.strategy._units])
    assert torch.equal(ranks.sum_(drawn.clone()), world * drawn), "ranks draw alike"
    for name, tensor in state(built).items():
        moved = not torch.equal(tensor, before[name])
        assert moved != name.startswith(away), (step, name)
"""

REDUCES = """
plain = trained(20, ddp, strategy="distill")
same(plain, trained(20, ddp, options={"p_student": 1}, total_steps=20))
"""

IN_TURNS = """
over = {"options": {"p_student": 0.5}, "total_steps": 100}
found = trained(10, MAKE, untouched, **over)
assert len(sizes) > 1, sizes
for name, tensor in found.items():
    if "running" not in name and tensor.is_floating_point():
        assert torch.equal(ranks.sum_(tensor.clone()) / world, tensor), f"{name} differs between ranks"
"""

EQUAL = """
same(found, trained(10, ddp, **over))
"""

END = """
ranks.barrier()
ranks.leave()
print("equal")
"""


def test_over_two_ranks_p_student_1_is_distillation_and_ddp_leaves_out_what_sits_out(root: Path) -> None:
    run_on_ranks(START + REDUCES + IN_TURNS.replace("MAKE", "ddp") + END, root, PYTHONPATH=str(root))


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero_0_updates_as_ddp_does(root: Path) -> None:
    run_on_ranks(START + IN_TURNS.replace("MAKE", "zero") + EQUAL + END, root, PYTHONPATH=str(root))
