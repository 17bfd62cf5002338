"""The student's logits come no further from the teacher's than a margin.

Edit this file, then, from the folder that holds your package:
    python KDSCALE/launch/check.py mine.margin
    losses: [{name: "mine.margin:Margin", margin: 0.5, weight: 0.1}]    in a config with
    plugins: {path: [.], allow: [mine]}                                 (the term's id is Margin, unless it says one)
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.precision import at_least_fp32

__all__ = ["Margin"]


class Margin(Loss):
    """Squared distances of logits beyond `margin`."""

    class Config(PluginConfig):
        """Options: keys beside `name`, each with a default; unknown ones are refused."""

        margin: float = Field(0.5, ge=0, description="distance that costs nothing")

    config: Config
    needs = frozenset({"logits"})  # "features": the term names taps, and student.features holds them; "labels"
    needs_teacher = True
    per_sample = True  # a value a sample, (B,); what compares samples has one value: False, and relational = True

    # What trains beside the student (a projector, say) is made in __init__(self, config, shapes), after
    # super().__init__(config, shapes): shapes.student and shapes.teacher hold the taps' shapes without B.

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return (B,)."""
        assert teacher is not None
        ours = at_least_fp32(student.logits)  # half precision ends here
        theirs = at_least_fp32(teacher.logits.detach())  # no gradient reaches a teacher
        beyond = ((ours - theirs).abs() - self.config.margin).clamp(min=0)
        return beyond.square().mean(dim=1)  # over classes; the mean over samples is kdscale's
