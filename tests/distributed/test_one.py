"""An on-the-fly ensemble over two ranks: with one branch it is cross-entropy, and ZeRO trains what DDP trains."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed.ranks import run_on_ranks
from tests.matrix import MATRIX

START = """
import torch

from kdscale import ranks
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.nn.sync_bn import average_buffers
from kdscale.strategies.distill import Distill
from tests.unit.train.made_up import batch
from tests.unit.train.small_ensemble import SIZE, STEPS, ce, ensemble, fresh

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
rank, world = ranks.rank(), ranks.world()
CONFIG = TrainConfig(epochs=1, batch_size=16, lr=0.1, precision="fp32")


def trained(engine, steps):
    for step in range(steps):
        mine = batch(step, 16, SIZE).split(world)[rank]
        engine.update(engine.forward(mine, {}, "main").total)
        engine.end_step(step)
    with engine.averaged():
        return {name: value.clone() for name, value in engine.unwrapped.state_dict().items()}


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]
"""

CROSS_ENTROPY = """
one = ensemble(branches=1, loss_scale=0.5)
found = trained(DdpEngine(one, CONFIG, steps_per_epoch=STEPS), STEPS)
plain = Distill(fresh("student"), {"main": [ce()]}).train()
expected = trained(DdpEngine(plain, CONFIG, steps_per_epoch=STEPS), STEPS)
assert not (odd := differing({name: found[name] for name in expected}, expected)), odd
gate = {f"further.gate.{name}" for name in one.branches.gate.state_dict()}
assert not (odd := set(found) - set(expected) - gate), odd
assert average_buffers(one).keys() > average_buffers(plain).keys()  # evaluation needs the gate's, too
print("equal")
"""

ZERO = """
from kdscale.engines.deepspeed import DeepSpeedEngine

expected = trained(DdpEngine(ensemble(branches=3), CONFIG, steps_per_epoch=STEPS), 5)
for stage in range(4):
    engine = DeepSpeedEngine(ensemble(branches=3), CONFIG, zero_stage=stage, steps_per_epoch=STEPS)
    assert not (odd := differing(trained(engine, 5), expected)), (stage, odd)
print("equal")
"""

ALSO = [MATRIX, pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")]


@pytest.mark.parametrize(
    "program", [pytest.param(CROSS_ENTROPY, id="cross-entropy"), pytest.param(ZERO, id="zero", marks=ALSO)]
)
def test_two_ranks(program: str, root: Path) -> None:
    run_on_ranks(START + program, root, PYTHONPATH=str(root))
