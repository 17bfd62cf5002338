"""WSKD in small: a student with BatchNorm, a teacher that is wrong where it is told to be, and both passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdscale import ranks
from kdscale.api import Batch, Outputs, Strategy, Term
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.losses.ce import CrossEntropy
from kdscale.losses.kd import SoftTargets
from kdscale.modifiers.lift_target import LiftTarget
from kdscale.modifiers.misclassified import Misclassified
from kdscale.strategies.distill import Distill
from kdscale.train.loop import train_step
from kdscale.train.metrics import Meter
from tests.unit.train.made_up import CLASSES, SHAPES, Convolutional, batch

__all__ = ["CONFIG", "STEPS", "Wrong", "engine_of", "meter_of", "rows_of", "state_of", "train", "wskd"]

STEPS = 20
CONFIG = TrainConfig(epochs=1, batch_size=8, lr=0.05, precision="fp32")


class Wrong:
    """A teacher that gets the rows wrong that it is told to, by step; it is sure of its answers, and of no other."""

    name, provides = "t", frozenset({"logits"})

    def __init__(self, wrong: dict[int, list[int]], dtype: torch.dtype = torch.float32) -> None:
        self.wrong, self.dtype = wrong, dtype

    def __call__(self, asked: Batch) -> Outputs:
        err = torch.tensor([int(row) in self.wrong.get(asked.step, []) for row in asked.rows])
        said = torch.where(err, (asked.labels + 1) % CLASSES, asked.labels)
        return Outputs((3 * torch.eye(CLASSES)[said] + 0.1 * torch.arange(CLASSES)).to(self.dtype))

    def fingerprint(self) -> str:
        return str(self.wrong)


def wskd(
    passes: int = 2, mu: float = 0.4, normalise: str = "selected", dtype: torch.dtype = torch.float32, **options: Any
) -> Strategy:
    """Both passes of WSKD, or the first alone: plain distillation."""
    torch.manual_seed(0)

    def terms(share: float, suffix: str, *, wise: bool) -> list[Term]:
        picks = [Misclassified(Misclassified.Config.model_validate({"normalise": normalise}), SHAPES)] if wise else []
        lifts = [LiftTarget(LiftTarget.Config(), SHAPES)] if wise else []
        return [
            Term(f"ce{suffix}", CrossEntropy(CrossEntropy.Config(), SHAPES), lambda _: 1 - share, "t", picks),
            Term(f"kd{suffix}", SoftTargets(SoftTargets.Config(), SHAPES), lambda _: share, "t", [*picks, *lifts]),
        ]

    named = {"general": terms(0.4, "", wise=False), "wise": terms(mu, "_wise", wise=True)}
    return Distill(Convolutional(), dict([*named.items()][:passes]), **options).to(dtype).train()


def engine_of(strategy: Strategy, **options: Any) -> DdpEngine:
    return DdpEngine(strategy, CONFIG.model_copy(update=options), steps_per_epoch=STEPS)


def meter_of(strategy: Strategy) -> Meter:
    terms = [name for name in ("ce", "kd", "ce_wise", "kd_wise") if name in strategy.terms]
    return Meter(terms, torch.device("cpu"), strategy.figures)


def train(engine: DdpEngine, teacher: Wrong, steps: range, meter: Meter | None = None) -> None:
    """This rank's part of every step."""
    for step in steps:
        mine = batch(step).split(ranks.world())[ranks.rank()]
        into = meter or meter_of(engine.unwrapped)
        into.add(train_step(engine, [teacher], mine, 1, into), step)
        engine.end_step(step)


def state_of(engine: DdpEngine) -> dict[str, Tensor]:
    """Everything that training has moved: parameters, buffers, and the optimizer's state."""
    return {**engine.unwrapped.student.state_dict(), **engine._optimizer_tensors()}


def rows_of(**wrong: list[int]) -> dict[int, list[int]]:
    """Wrong rows by step: `rows_of(s3=[0, 5])`."""
    return {int(step[1:]): rows for step, rows in wrong.items()}
