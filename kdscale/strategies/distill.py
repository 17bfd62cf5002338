r"""The usual strategy: one student, its terms, in one or several passes over each batch.

Formula:
    \mathcal{L}(\text{step}) = \sum_{i} w_i(\text{step}) \, \mathcal{L}_i

Source: none; what is published of it are its terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdscale import ranks
from kdscale.api import Batch, Losses, Outputs, PluginConfig, Strategy, Taught, Term, Weighted
from kdscale.errors import ConfigError
from kdscale.nn.measures import Measures
from kdscale.nn.selection import Pick, count_of, picks_of, term_selects
from kdscale.nn.sides import total
from kdscale.nn.stage_parts import StageParts

__all__ = ["Distill"]


class Distill(Strategy):
    """Adds up weighted terms between the student and its teachers.

    Everything that trains is a child of this module: the student, and the trainable parts of terms and
    modifiers, under `terms.<id>` and `modifiers.<id>`.

    A pass whose terms all pick their samples may be left without any; how many any of them picks is its figure.

    Args:
        student: the network.
        passes: terms by pass.
        fixed_bn: passes in which the student's BatchNorm uses its running statistics, and leaves them as they are.

    Raises:
        ConfigError: there is no such pass.
    """

    class Config(PluginConfig):
        """Options."""

        fixed_bn: list[str] = Field([], description="passes that leave the student's BatchNorm statistics alone")

    def __init__(
        self, student: nn.Module, passes: Mapping[str, Sequence[Term]], *, fixed_bn: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if unknown := [name for name in fixed_bn if name not in passes]:
            raise ConfigError(f"options.fixed_bn: {unknown[0]} is no pass of this stage (it has {', '.join(passes)})")
        self._fixed_bn = frozenset(fixed_bn)
        self.student = student
        self.passes = tuple(passes)
        self._terms = {name: tuple(terms) for name, terms in passes.items()}
        self._selecting = [name for name, terms in passes.items() if terms and all(map(term_selects, terms))]
        every = [term for terms in passes.values() for term in terms]
        self.terms = nn.ModuleDict({term.id: term.loss for term in every})
        self._measures = {
            name: [(term.id, term.loss) for term in terms if isinstance(term.loss, Measures)]
            for name, terms in self._terms.items()
        }
        measured = [
            f"{id_}/{name}" for found in self._measures.values() for id_, loss in found for name in loss.figures
        ]
        self.figures = (*map(_figure, self._selecting), *measured)
        self.modifiers = nn.ModuleDict({t.id: nn.ModuleList(t.modifiers) for t in every if t.modifiers})

    @classmethod
    def build(
        cls, student: nn.Module, passes: Mapping[str, Sequence[Term]], config: Any, stage: StageParts
    ) -> Strategy:
        del stage
        return cls(student, passes, fixed_bn=config.fixed_bn)

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run the student once and weigh the terms of one pass."""
        parts = self.weighted(batch, taught, pass_)
        summed = total([part.weight * part.value for part in parts])
        figures = self._measured(pass_) | self._picked(batch, taught, pass_)
        return Losses(summed, {part.id: part.value.detach() for part in parts}, figures)

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Run the student once; each term of one pass with its weight at this step."""
        with _running_statistics(self.student) if pass_ in self._fixed_bn else nullcontext():
            answered: Outputs = self.student(batch.images)
        return self.compared(answered, batch, taught, pass_)

    def compared(self, answered: Outputs, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Each term of one pass, of what has been answered."""
        with torch.autocast(answered.logits.device.type, enabled=False):
            picks = picks_of(self._terms[pass_], taught, batch)
            return [
                Weighted(term.id, term.weight(batch.step), _value(term, answered, taught, batch, pick))
                for term, pick in zip(self._terms[pass_], picks, strict=True)
            ]

    def picked(self, batch: Batch, taught: Taught) -> dict[str, Int64[Tensor, ""]]:
        """How many of this rank's samples count, in each pass that could be left without any."""
        return {name: count_of(self._terms[name], taught, batch) for name in self._selecting}

    def _measured(self, pass_: str) -> dict[str, Tensor]:
        found = self._measures[pass_]
        return {f"{id_}/{name}": value for id_, loss in found for name, value in loss.measured.items()}

    def _picked(self, batch: Batch, taught: Taught, pass_: str) -> dict[str, Tensor]:
        if pass_ not in self._selecting:
            return {}
        # times the world, since the mean over ranks is what is logged
        return {_figure(pass_): count_of(self._terms[pass_], taught, batch).float() * ranks.world()}


@contextmanager
def _running_statistics(network: nn.Module) -> Iterator[None]:
    """Hold the BatchNorm layers that train in eval."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _figure(pass_: str) -> str:
    """Samples of a global batch that a pass counts."""
    return f"picked/{pass_}"


def _value(term: Term, answered: Outputs, taught: Taught, batch: Batch, pick: Pick | None) -> Tensor:
    """One term's mean over this rank's batch, or over the samples that it picks, in fp32."""
    student = Outputs(answered.logits, [answered.features[i] for i in term.student_taps], answered.pixels)
    teacher = _taught(term, taught[term.teacher], answered.logits) if term.teacher is not None else None
    for modifier in term.modifiers:
        student, teacher = modifier.before(student, teacher, batch)
    value: Tensor = term.loss(student, teacher, batch)
    for modifier in term.modifiers:
        value = modifier.after(value, batch)
    if pick is not None:
        return pick.mean(value)
    return value.mean() if value.dim() else value


def _taught(term: Term, teacher: Outputs, logits: Tensor) -> Outputs:
    """What one term hears of its teacher: a cache that lacks classes completes its answer for a temperature."""
    softer, own = term.temperatures
    answer = teacher.at(softer, logits, own)
    return Outputs(answer.logits, [teacher.features[i] for i in term.teacher_taps], answer.pixels, top=answer.top)
