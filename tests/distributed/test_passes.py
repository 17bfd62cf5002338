"""Several passes over a batch on several ranks, of which one has a term with trained parts of its own."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import run_on_ranks

PROGRAM = """
import torch
from torch import nn
from kdscale import ranks
from kdscale.api import Outputs, Term
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.losses.ce import CrossEntropy
from kdscale.strategies.distill import Distill
from tests.unit.train.made_up import CLASSES, SHAPES, batch
from tests.unit.train.small_ensemble import SIZE, STEPS, ce, fresh

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)


class Turned(CrossEntropy):
    def __init__(self, config, shapes):
        super().__init__(config, shapes)
        self.turn = nn.Linear(CLASSES, CLASSES)

    def forward(self, student, teacher, batch):
        return super().forward(Outputs(self.turn(student.logits)), teacher, batch)


torch.manual_seed(0)
term = Term("turned", Turned(CrossEntropy.Config(), SHAPES), lambda step: 1.0)
strategy = Distill(fresh("student"), {"labels": [ce()], "turned": [term]}).train()
before = {name: value.clone() for name, value in strategy.named_parameters()}
engine = DdpEngine(strategy, TrainConfig(epochs=1, precision="fp32", lr=0.1), steps_per_epoch=STEPS)
for step in range(3):
    mine = batch(step, 16, SIZE).split(ranks.world())[ranks.rank()]
    for pass_ in engine.passes:
        engine.update(engine.forward(mine, {}, pass_).total)
    engine.end_step(step)
for name, value in strategy.named_parameters():
    assert not torch.equal(value, before[name]), name
    assert torch.equal(ranks.max_(value.detach().clone()), value), name
print("equal")
"""


def test_a_pass_may_have_trained_parts_that_another_does_not_use(root: Path) -> None:
    run_on_ranks(PROGRAM, root, PYTHONPATH=str(root))
