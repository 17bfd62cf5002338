"""Decoupled soft targets: how sure the teacher is of the label, and how it ranks the other classes, weighed apart.

Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv:2203.08919, eq. 7; defaults of the authors' code
(mdistiller) for CIFAR-100. There its weight rises over the first 20 of 240 epochs, a matter of the weight.
Deviation: the label is left out of the second part exactly, where the code subtracts 1000 from its logit, which
fails once logits lie that far apart. A mixed sample (mixup, cutmix) counts for both its labels, each by its share.
Reduction: sum over classes, mean over samples, times temperature².
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.sides import logit_sides

__all__ = ["DecoupledSoftTargets"]


class DecoupledSoftTargets(Loss):
    """Match label against rest (weight alpha), and the rest among itself (weight beta), softened by `temperature`."""

    class Config(PluginConfig):
        """Options."""

        temperature: float = Field(4.0, gt=0)
        alpha: float = Field(1.0, ge=0, description="weight of the label's class against all others")
        beta: float = Field(8.0, ge=0, description="weight of the others among themselves")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"logits", "labels"})
    reads = "probabilities"

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        if shapes.classes < 2:
            raise ShapeError("dkd: a single class leaves no others to compare; use kd")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the weighted divergences of each sample, in nats. Raises: ShapeError."""
        ours, theirs = logit_sides("dkd", student, teacher)
        values = self._against(ours, theirs, batch.labels)
        if batch.labels_b is None or batch.lam is None:
            return values
        return batch.lam * values + (1 - batch.lam) * self._against(ours, theirs, batch.labels_b)

    def _against(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> Tensor:
        target, others = decoupled(ours, theirs, labels, self.config.temperature)
        return self.config.alpha * target + self.config.beta * others


def decoupled(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], labels: Int64[Tensor, "B"], t: float
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Compute the two divergences, of target and of non-target classes, times t², in nats.

    With p_y the softened probability of the label they add up to the soft targets of Hinton et al. as
    target + (1 - p_y of the teacher) · others (eq. 5).
    """
    p_label, p_others = _parts(teacher / t, labels)
    q_label, q_others = _parts(student / t, labels)
    return t**2 * _divergence(p_label, q_label), t**2 * _divergence(p_others, q_others)


def _parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (label's, all others') probability, (B, 2), and of the others' among themselves, (B, C - 1)."""
    logits = logits.log_softmax(dim=1)  # a sum of exponentials far from 0 would lose digits
    label = labels[:, None]
    place = torch.arange(logits.shape[1] - 1, device=labels.device)
    others = logits.gather(1, place + (place >= label))  # by a mask the host would wait for their number
    pair = torch.cat([logits.gather(1, label), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return pair.log_softmax(dim=1), others.log_softmax(dim=1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
