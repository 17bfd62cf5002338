"""A case of a golden file, and how an adapter says what computes each of its outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdscale import plugins
from kdscale.api import Batch, Loss, Outputs, Shapes

__all__ = ["Adapter", "Case", "Hyper", "Out", "defaults", "terms"]

Hyper = Mapping[str, Any]
LossT = TypeVar("LossT", bound=Loss)


@dataclass
class Case:
    """One case of a golden file, as tensors of one dtype."""

    hp: Hyper
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    weight_names: Mapping[str, str]

    @property
    def student(self) -> Outputs:
        return self._outputs("s")

    @property
    def teacher(self) -> Outputs:
        return self._outputs("t")

    @property
    def layers(self) -> range:
        """Numbers of the tapped layers, where there are several."""
        return range(sum(name.startswith("f_s.") for name in self.inputs))

    @property
    def batch(self) -> Batch:
        size = len(next(iter(self.inputs.values())))
        labels = self.inputs.get("y", torch.zeros(size, dtype=torch.int64))
        return Batch(torch.zeros(size, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(size), view=0)

    def value(self, name: str, options: Mapping[str, Any]) -> Tensor:
        """The mean over the batch of one loss, with the file's weights in its own parts."""

        def value(loss: Loss) -> Tensor:
            return loss(self.student, self.teacher if loss.needs_teacher else None, self.batch).mean()

        return self.used(self.loss(name, options), value)

    def part(self, name: str, options: Mapping[str, Any], path: str, *inputs: Tensor) -> Tensor:
        """What one trainable part of a loss gives, with the file's weights in it."""
        return self.used(self.loss(name, options), lambda loss: loss.get_submodule(path)(*inputs))

    def used(self, loss: LossT, use: Callable[[LossT], Tensor]) -> Tensor:
        """What a loss is used for, while it holds the file's weights; differentiable by them."""
        weights = {f"loss.{name}": weight for name, weight in self.parts(loss).items()}
        got: Tensor = torch.func.functional_call(_Used(loss, use), weights, ())
        return got

    def loss(self, name: str, options: Mapping[str, Any]) -> Loss:
        """A loss built for this case, training."""
        plugin = plugins.load("losses", name)
        student, teacher = self.student, self.teacher
        shapes = Shapes(
            classes=student.logits.shape[1],
            student=[tuple(f.shape[1:]) for f in student.features],
            teacher=[tuple(f.shape[1:]) for f in teacher.features],
        )
        loss: Loss = plugin(plugin.Config(**options), shapes)
        return loss.to(next(iter(self.inputs.values())).dtype).train()

    def parts(self, loss: Loss) -> dict[str, Tensor]:
        """The file's weights by the loss's own names."""
        mine = dict(loss.named_parameters())
        found = {self._own_name(theirs): weight for theirs, weight in self.weights.items()}
        return {own: weight for own, weight in found.items() if own in mine}

    def _own_name(self, theirs: str) -> str:
        """Of a weight; # stands for the number of a layer."""
        if theirs in self.weight_names:
            return self.weight_names[theirs]
        number = next(iter(re.findall(r"\.(\d+)\.", theirs)), "")
        return self.weight_names.get(theirs.replace(f".{number}.", ".#.", 1), "").replace("#", number)

    def _outputs(self, side: str) -> Outputs:
        """`z_s` are logits; `f_s`, or `f_s.0`, `f_s.1` ... from shallow to deep, are features."""
        names = sorted((n for n in self.inputs if n.split(".")[0] == f"f_{side}"), key=lambda n: (len(n), n))
        features = [self.inputs[n] for n in names]
        nothing = torch.zeros(len(next(iter(self.inputs.values()))), 1)
        return Outputs(self.inputs.get(f"z_{side}", nothing), features)


class _Used(nn.Module):
    """A use of a loss as a module, so that its weights can be leaves."""

    def __init__(self, loss: LossT, use: Callable[[LossT], Tensor]) -> None:
        super().__init__()
        self.loss, self.use = loss, use

    def forward(self) -> Tensor:
        return self.use(self.loss)


Out = Callable[[Case], Tensor]


@dataclass(frozen=True)
class Adapter:
    """How one method is computed here."""

    outs: Mapping[str, Out]
    weight_names: Mapping[str, str] = field(default_factory=dict)
    """The file's name of a trainable part -> the loss's own; # stands for the number of a layer."""
    numbered: Mapping[str, Callable[[int], Out]] = field(default_factory=dict)
    """Outputs of which there is one a layer, or step: a name without its number -> what computes that one."""

    def out(self, name: str) -> Out | None:
        """What computes an output; None where nothing does."""
        if name in self.outs:
            return self.outs[name]
        stem = name.rstrip("0123456789")
        return self.numbered[stem](int(name[len(stem) :])) if stem in self.numbered and stem != name else None


def terms(*summands: tuple[float | str, str, Callable[[Hyper], dict[str, Any]]]) -> Out:
    """A weighted sum of losses: (weight or the name of the hyper-parameter that holds it, loss, its options)."""

    def out(case: Case) -> Tensor:
        values = [
            (float(case.hp[weight]) if isinstance(weight, str) else weight) * case.value(name, options(case.hp))
            for weight, name, options in summands
        ]
        return torch.stack(values).sum()

    return out


def defaults(hp: Hyper) -> dict[str, Any]:
    """The loss's defaults are the reference's."""
    return {}
