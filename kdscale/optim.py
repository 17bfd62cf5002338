"""The optimizer and the learning rate, a pure function of the step.

There is no scheduler object and so no scheduler state: step n has the same learning rate whoever
computes it, before or after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdscale.config.schema import TermConfig, TrainConfig

__all__ = ["OwnRate", "learning_rate", "make_optimizer", "milestone_steps", "own_rates"]


@dataclass(frozen=True)
class OwnRate:
    """A part's own optimisation: a factor on the learning rate, and its weight decay."""

    lr_factor: float = 1.0
    weight_decay: float | None = None


def own_rates(term: TermConfig, undecayed: Sequence[str]) -> dict[str, OwnRate]:
    """How a term's parts are optimised where they are not optimised like the student, by prefix of parameters' names.

    Args:
        term: as configured: `lr` and `weight_decay` go for its loss's parts and its modifiers'.
        undecayed: how the names of the loss's parameters begin that take no weight decay all the same.
    """
    factor = 1.0 if term.lr is None else term.lr
    found = {f"terms.{term.id}.{part}": OwnRate(factor, 0.0) for part in undecayed}
    if term.lr is not None or term.weight_decay is not None:
        own = OwnRate(factor, term.weight_decay)
        found |= {f"terms.{term.id}.": own, f"modifiers.{term.id}.": own}
    return found


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], train: TrainConfig, own: Mapping[str, OwnRate]
) -> torch.optim.Optimizer:
    """Make the optimizer over the parameters that require a gradient.

    Args:
        parameters: names and parameters of the strategy.
        train: kind and hyper-parameters.
        own: own rates, by prefix of the parameters' names; of several that fit, the first.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            prefix = next((p for p in own if name.startswith(p)), "")
            groups.setdefault(prefix, []).append(parameter)
    if not groups:
        raise ValueError("no parameter requires a gradient")
    listed = [_group(members, own.get(prefix, OwnRate()), train) for prefix, members in groups.items()]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(listed, lr=train.lr, foreach=True)
    return torch.optim.SGD(listed, lr=train.lr, momentum=train.momentum, nesterov=train.nesterov, foreach=True)


def learning_rate(train: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate of each step, from 0; `train.lr` is its largest value."""
    total = max(1, train.epochs * steps_per_epoch)
    warmup = round(train.warmup_epochs * steps_per_epoch)
    shape = _SHAPES[train.schedule](train, total, steps_per_epoch)

    def rate(step: int) -> float:
        rise = (step + 1) / (warmup + 1) if step < warmup else 1.0
        return train.lr * rise * shape(min(step, total - 1), warmup)

    return rate


Shape = Callable[[int, int], float]


def _constant(train: TrainConfig, total: int, steps_per_epoch: int) -> Shape:
    del train, total, steps_per_epoch
    return lambda step, warmup: 1.0


def _cosine(train: TrainConfig, total: int, steps_per_epoch: int) -> Shape:
    """From 1 to 0 after the warm-up. Source: Loshchilov & Hutter, arXiv:1608.03983, eq. 5, one cycle."""
    del train, steps_per_epoch

    def shape(step: int, warmup: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))

    return shape


def milestone_steps(train: TrainConfig, total: int, steps_per_epoch: int) -> list[float]:
    """Where the schedule `multistep` lowers the rate, in steps, as configured."""
    return [m * total if m <= 1 else m * steps_per_epoch for m in train.milestones]


def _multistep(train: TrainConfig, total: int, steps_per_epoch: int) -> Shape:
    marks = milestone_steps(train, total, steps_per_epoch)
    return lambda step, warmup: train.gamma ** sum(step >= mark for mark in marks)


def _onecycle(train: TrainConfig, total: int, steps_per_epoch: int) -> Shape:
    """Linear rise (the warm-up), then linear fall to 0. Source: Smith & Topin, arXiv:1708.07120."""
    del train, steps_per_epoch

    def shape(step: int, warmup: int) -> float:
        return 1.0 if step < warmup else (total - step) / max(1, total - warmup)

    return shape


_SHAPES: dict[str, Callable[[TrainConfig, int, int], Shape]] = {
    "constant": _constant,
    "cosine": _cosine,
    "multistep": _multistep,
    "onecycle": _onecycle,
}


def _group(members: list[nn.Parameter], own: OwnRate, train: TrainConfig) -> dict[str, object]:
    decay = train.weight_decay if own.weight_decay is None else own.weight_decay
    return {"params": members, "lr": train.lr, "lr_factor": own.lr_factor, "weight_decay": decay}
