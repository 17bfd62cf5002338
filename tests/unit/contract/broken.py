"""Plug-ins that each break one promise, on the line that says HERE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.api import Batch, Loss, Modifier, Outputs, PluginConfig, Strategy, Taught, Term, Weighted
from kdscale.strategies.distill import Distill


def gap(student: Outputs, teacher: Outputs | None) -> Tensor:
    assert teacher is not None
    return student.logits.float() - teacher.logits.detach().float()


class Scalar(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return gap(student, teacher).square().mean()


class OverTheBatch(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        difference = gap(student, teacher)
        return (difference - difference.mean(0)).square().mean(1)


class TeachesTheTeacher(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return (student.logits.float() - teacher.logits.float()).square().mean(1)


class Detached(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return gap(replace(student, logits=student.logits.detach()), teacher).square().mean(1)


class Exponential(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        powers = torch.exp(student.logits.float())  # HERE
        shares = powers / powers.sum(1, keepdim=True)
        return (shares - teacher.logits.detach().float().softmax(1)).square().mean(1)


class InHalf(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return (student.logits - teacher.logits.detach()).abs().mean(1)


class Cosine(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        ours, theirs = student.logits.float(), teacher.logits.detach().float()
        lengths = ours.square().sum(1).sqrt()  # HERE
        return 1 - (ours * theirs).sum(1) / (lengths * theirs.norm(dim=1) + 1.0)


class ReadsLabels(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return gap(student, teacher).square().gather(1, batch.labels[:, None])[:, 0]


class Noisy(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        noise = torch.randn(5)  # HERE
        return (gap(student, teacher) + noise).square().mean(1)


class Crashes(Loss):
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return gap(student, teacher)[:, :, 0]  # HERE


class NoDefault(Loss):
    class Config(PluginConfig):
        margin: float

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return gap(student, teacher).square().mean(1) + self.config.margin


class OneMap(Loss):
    """Keeps the contract; takes one map alone."""

    needs = frozenset({"features"})

    def __init__(self, config: PluginConfig, shapes: Any) -> None:
        super().__init__(config, shapes)
        ((channels, _, _),) = shapes.student
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        (ours,), (theirs,) = student.features, teacher.features
        return (self.project(ours.float()) - theirs.detach().float()).square().flatten(1).mean(1)


class Narrower(Modifier):
    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        return replace(student, logits=student.logits[:, :2]), teacher


class Judging(Modifier):
    def after(self, values: Tensor, batch: Batch) -> Tensor:
        return values * (batch.labels > 2)


class Unasked(Modifier):
    def mask(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        return batch.labels > 2


class Forgetful(Distill):
    """Remembers what no checkpoint holds."""

    def __init__(self, student: nn.Module, passes: Mapping[str, Sequence[Term]]) -> None:
        super().__init__(student, passes)
        self.seen = 0.0

    @classmethod
    def build(cls, student: nn.Module, passes: Mapping[str, Sequence[Term]], config: Any, stage: Any) -> Strategy:
        return cls(student, passes)

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        self.seen += 1.0
        return [replace_value(one, one.value * self.seen) for one in super().weighted(batch, taught, pass_)]


def replace_value(one: Weighted, value: Tensor) -> Weighted:
    return one._replace(value=value)


class Owning(Forgetful):
    """Makes its parts children of the student, and does not freeze what is frozen."""

    def __init__(self, student: nn.Module, passes: Mapping[str, Sequence[Term]]) -> None:
        super().__init__(student, passes)
        student.get_submodule("model").add_module("extra", nn.Linear(5, 5))

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        self.student.train()
        return Distill.weighted(self, batch, taught, pass_)


class MixesInEval(nn.Module):
    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        logits: Tensor = self.head(pooled - pooled.mean(0))
        return logits


class KeepsAside(nn.Module):
    """Its state_dict does not hold all that it is."""

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.mask = torch.rand(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)) * self.mask)
        return logits


class WrongTaps(nn.Module):
    taps: Mapping[str, tuple[str, bool]] = {"late": ("stage9", True)}

    def __init__(self, *, outputs: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(channels, outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


class Branching(nn.Module):
    """Its path depends on values, which torch.export does not take."""

    def __init__(self, *, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        if pooled.sum() > 0:
            pooled = pooled * 2
        logits: Tensor = self.head(pooled)
        return logits
