"""The usual strategy: one student, its terms, in one or several passes over each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdscale.api import Batch, Losses, Outputs, PluginConfig, Setting, Strategy, Taught, Term, Weighted
from kdscale.nn.sides import total

__all__ = ["Distill"]


class Distill(Strategy):
    """Adds up weighted terms between the student and its teachers.

    Everything that trains is a child of this module: the student, and the trainable parts of terms and
    modifiers, under `terms.<id>` and `modifiers.<id>`.
    """

    def __init__(self, student: nn.Module, passes: Mapping[str, Sequence[Term]]) -> None:
        super().__init__()
        self.student = student
        self.passes = tuple(passes)
        self._terms = {name: tuple(terms) for name, terms in passes.items()}
        every = [term for terms in passes.values() for term in terms]
        self.terms = nn.ModuleDict({term.id: term.loss for term in every})
        self.modifiers = nn.ModuleDict({t.id: nn.ModuleList(t.modifiers) for t in every if t.modifiers})

    @classmethod
    def build(
        cls, student: nn.Module, passes: Mapping[str, Sequence[Term]], config: PluginConfig, setting: Setting
    ) -> Strategy:
        """It has no options, and asks nothing of its stage."""
        del config, setting
        return cls(student, passes)

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run the student once and weigh the terms of one pass."""
        parts = self.weighted(batch, taught, pass_)
        summed = total([part.weight * part.value for part in parts])
        return Losses(summed, {part.id: part.value.detach() for part in parts})

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Run the student once; each term of one pass with its weight at this step."""
        return self.compared(self.student(batch.images), batch, taught, pass_)

    def compared(self, answered: Outputs, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Each term of one pass, of what has been answered."""
        with torch.autocast(answered.logits.device.type, enabled=False):
            return [
                Weighted(term.id, term.weight(batch.step), _value(term, answered, taught, batch))
                for term in self._terms[pass_]
            ]


def _value(term: Term, answered: Outputs, taught: Taught, batch: Batch) -> Tensor:
    """One term's mean over this rank's batch, in fp32."""
    student = Outputs(answered.logits, [answered.features[i] for i in term.student_taps], answered.pixels)
    teacher = _taught(term, taught[term.teacher], answered.logits) if term.teacher is not None else None
    for modifier in term.modifiers:
        student, teacher = modifier.before(student, teacher, batch)
    value: Tensor = term.loss(student, teacher, batch)
    for modifier in term.modifiers:
        value = modifier.after(value, batch)
    return value.mean() if value.dim() else value


def _taught(term: Term, teacher: Outputs, logits: Tensor) -> Outputs:
    """What one term hears of its teacher: a cache that lacks classes completes its answer for a temperature."""
    softer, own = term.temperatures
    answer = teacher.at(softer, logits, own)
    return Outputs(answer.logits, [teacher.features[i] for i in term.teacher_taps], answer.pixels)
