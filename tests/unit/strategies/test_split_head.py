"""The checks by which one knows that a head alone is distilled, and that it is judged as it is deployed."""

from __future__ import annotations

import pytest
import torch

from kdscale.api import Batch, Outputs, Shapes, Term
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.errors import ConfigError
from kdscale.losses.ce import CrossEntropy
from kdscale.losses.fitnet import Hints
from kdscale.nn.split_parts import split_parts
from kdscale.nn.weights import tensors_hash
from kdscale.pipeline.freezing import freeze, keep_frozen_in_eval
from kdscale.strategies.split_head import HeadDistillation
from kdscale.train.evaluate import Evaluator
from tests.unit.nn.small_split import images, network

FEATURE = (4, 8, 8)
STEPS = 6


def seen(step: int = 0, count: int = 16) -> Batch:
    return Batch(images(count, step), torch.arange(count) % 3, torch.arange(count), view=0, step=step)


def taught(batch: Batch) -> dict[str, Outputs]:
    with torch.no_grad():
        return {"teacher": network(taps=["stage2"]).eval()(batch.images)}


def made(*, labels: bool = False) -> HeadDistillation:
    """As a stage makes it: the student begins with its teacher's weights, and what is frozen is in eval."""
    student = network(taps=["stage2"], split_head={"split_at": "stage2", "channels": 2, "size": 4})
    shapes = Shapes(3, [FEATURE], [FEATURE])
    hints = Hints(Hints.Config(regressor="none"), shapes)
    terms = [Term("fitnet", hints, lambda step: 1.0, "teacher", student_taps=[0], teacher_taps=[0])]
    terms += [Term("ce", CrossEntropy(CrossEntropy.Config(), shapes), lambda step: 1.0)] if labels else []
    strategy = HeadDistillation(student, {"main": terms})
    freeze(strategy, student, [], None)
    strategy.train()
    keep_frozen_in_eval(strategy)
    return strategy


def trained(strategy: HeadDistillation) -> list[float]:
    """Losses of some steps of an engine on one batch."""
    config = TrainConfig(epochs=1, precision="fp32", optimizer="adamw", lr=0.003, weight_decay=0.1)
    engine, losses = DdpEngine(strategy, config, steps_per_epoch=STEPS), []
    for step in range(STEPS):
        losses.append(engine.forward(seen(), taught(seen()), "main").total)
        engine.update(losses[-1])
        engine.end_step(step)
    return [loss.item() for loss in losses]


@pytest.mark.parametrize("labels", [False, True])
def test_training_changes_the_head_and_nothing_behind_it(labels: bool) -> None:
    strategy = made(labels=labels)

    def hashes() -> tuple[str, str]:
        state = strategy.student.state_dict()
        head = {name: value for name, value in state.items() if name.startswith("model.stage2.")}
        return tensors_hash(head), tensors_hash({name: value for name, value in state.items() if name not in head})

    before, losses = hashes(), trained(strategy)
    after = hashes()
    assert losses[-1] < losses[0]
    assert after[0] != before[0]
    assert after[1] == before[1]  # parameters, and the running statistics of BatchNorm


@pytest.mark.parametrize("labels", [False, True])
def test_no_gradient_enters_what_follows_the_head_and_all_of_the_head_has_one(labels: bool) -> None:
    strategy = made(labels=labels)
    strategy(seen(), taught(seen()), "main").total.backward()
    with_gradient = {name for name, p in strategy.named_parameters() if p.grad is not None}
    assert with_gradient == {f"student.model.stage2.{name}" for name, _ in strategy.head.named_parameters()}


def test_nothing_but_the_student_is_in_it() -> None:
    strategy = made()
    assert all(name.startswith("student.model.") for name, _ in strategy.named_parameters())
    student = set(strategy.student.model.state_dict())  # type: ignore[union-attr]
    parts = [set(part.state_dict()) for part in split_parts(strategy.student)]  # type: ignore[arg-type]
    assert len(parts[0] | parts[1]) == len(student)


def test_evaluation_is_with_bytes_and_beside_it_without() -> None:
    strategy = made()
    trained(strategy)
    strategy.eval()
    answered = strategy.evaluated()(images())
    assert torch.equal(answered.logits, strategy.student(images()).logits)
    with strategy.head.wire.uncoded():
        exact = strategy.student(images()).logits
    assert torch.equal(answered.beside["float_wire"], exact)
    assert not torch.equal(exact, answered.logits)
    judged = Evaluator([seen()], [], 3, torch.device("cpu"), 16)(strategy.evaluated())
    assert judged is not None
    assert set(judged.metrics("val")) >= {"val/top1", "val/top1_of/float_wire"}


def test_the_range_is_a_figure() -> None:
    strategy = made()
    losses = strategy(seen(), taught(seen()), "main")
    assert list(losses.figures) == list(strategy.figures) == ["wire/low", "wire/high"]
    assert losses.figures["wire/low"] < losses.figures["wire/high"]
    kept = losses.figures["wire/high"].item()
    strategy(seen(1), taught(seen(1)), "main")
    assert losses.figures["wire/high"].item() == kept  # a copy: what moves on is the wire's


def test_a_student_without_a_split_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.split_head"):
        HeadDistillation(network(), {"main": []})
