"""WSKD over several ranks: the same loss as one process, and the same updates, whoever has a wrong answer among his."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import run_on_ranks
from tests.matrix import MATRIX

START = """
import torch
from kdscale import ranks
from tests.unit.strategies.wise import CONFIG, STEPS, Wrong, engine_of, state_of, train, wskd
from tests.unit.train.made_up import batch

torch.set_num_threads(1)
"""

EQUAL_LOSS = """
CASES = [(0, [0]), (1, [1, 6, 7]), (2, []), (3, list(range(8)))]


def found(normalise, world, rank):
    strategy = wskd(normalise=normalise, dtype=torch.float64)
    strategy.student.norm.eval()  # its statistics are each rank's own
    engine, values = engine_of(strategy), {}
    for step, wrong in CASES:
        mine = batch(step).split(world)[rank]
        teacher = Wrong({step: wrong}, torch.float64)
        losses = engine.forward(mine, {"t": teacher(mine)}, "wise")
        losses.total.backward()
        values |= {f"{step} {name}": value for name, value in losses.terms.items()}
        values |= {f"{step} total": losses.total.detach(), f"{step} picked": losses.figures["picked/wise"]}
        values |= {f"{step} gradient {n}": p.grad.clone() for n, p in strategy.named_parameters()}
        strategy.zero_grad()
    return {name: ranks.mean_(value.clone()) for name, value in values.items()}


alone = [found(normalise, 1, 0) for normalise in ("selected", "batch")]
assert [float(alone[0][f"{step} picked"]) for step, _ in CASES] == [1, 3, 0, 8]
ranks.join("gloo", timeout_s=60)
together = [found(normalise, ranks.world(), ranks.rank()) for normalise in ("selected", "batch")]
for one, many in zip(alone, together):
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, rtol=1e-9, atol=1e-12, msg=lambda said, at=name: f"{at}: {said}")
"""

SAME_UPDATES = """
def trained(passes, wrong, counts=None):
    engine = engine_of(wskd(passes))
    step = engine._optimizer.step
    engine._optimizer.step = lambda: (counts.append(1), step())[-1]
    train(engine, Wrong(wrong), range(STEPS))
    return state_of(engine)


blkd, never, updates = trained(1, {}, []), trained(2, {}, []), []
assert all(torch.equal(never[name], value) for name, value in blkd.items()) and blkd.keys() == never.keys()
wrong = {0: [1], 4: [6, 7], 9: [0, 5]}  # on the first rank alone, on the last alone, on both
state = trained(2, wrong, updates)
assert len(updates) == STEPS + len(wrong), len(updates)
weights = torch.cat([value.flatten() for name, value in state.items() if "conv" in name or "head" in name])
assert torch.equal(ranks.max_(weights.clone()), weights)
"""

ZERO = """
from kdscale.engines.deepspeed import DeepSpeedEngine

ranks.join("gloo", timeout_s=60)
wrong = {0: [1], 4: [6, 7], 9: [0, 5]}
states = []
for make in (engine_of, lambda strategy: DeepSpeedEngine(strategy, CONFIG, zero_stage=2, steps_per_epoch=STEPS)):
    engine = make(wskd())
    train(engine, Wrong(wrong), range(STEPS))
    states.append({name: value.clone() for name, value in engine.unwrapped.student.state_dict().items()})
assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
"""

END = """
ranks.leave()
print("equal")
"""


def test_two_ranks_find_the_loss_and_make_the_updates_of_one_process(root: Path) -> None:
    """Plain distillation's updates, bit for bit, where the teacher is never wrong."""
    run_on_ranks(START + EQUAL_LOSS + SAME_UPDATES + END, root)


@MATRIX
def test_four_ranks_find_the_loss_of_one_process(root: Path) -> None:
    run_on_ranks(START + EQUAL_LOSS + END, root, world=4)


@MATRIX
def test_sharded_updates_are_ddps(root: Path, tmp_path: Path) -> None:
    run_on_ranks(START + ZERO + END, root, within_s=200, TORCH_EXTENSIONS_DIR=str(tmp_path / "none"))
