"""The student puts the classes in the teacher's order, whatever the size of its logits."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.precision import at_least_fp32

__all__ = ["Order"]


class Order(Loss):
    """Hinge loss over pairs of classes: the one that the teacher prefers shall lead by a margin."""

    class Config(PluginConfig):
        """Options."""

        margin: float = Field(0.5, ge=0, description="by which the student's logit of the preferred class shall lead")

    config: Config

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return (B,), a mean over the pairs of classes."""
        assert teacher is not None
        ours = at_least_fp32(student.logits)
        theirs = at_least_fp32(teacher.logits.detach())
        lead = ours[:, :, None] - ours[:, None, :]
        preferred = (theirs[:, :, None] - theirs[:, None, :]).sign()
        return (preferred.abs() * (self.config.margin - preferred * lead).clamp(min=0)).mean(dim=(1, 2))
