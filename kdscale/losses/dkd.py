r"""Decoupled soft targets: how sure the teacher is of the label, and how it ranks the other classes, weighed apart.

Formula:
    \mathcal{L} = \frac{T^2}{N} \sum_{n} \Big( \alpha \Big( P^t_n \log \frac{P^t_n}{P^s_n} + (1 - P^t_n) \log
        \frac{1 - P^t_n}{1 - P^s_n} \Big) + \beta \sum_{k \neq y_n} \hat{p}^t_{nk} \log
        \frac{\hat{p}^t_{nk}}{\hat{p}^s_{nk}} \Big)
    P_n = \mathrm{softmax}(z_n / T)_{y_n}, \quad \hat{p}_{nk} = \frac{\mathrm{softmax}(z_n / T)_k}{1 - P_n}

Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv:2203.08919, eq. 7; defaults of the authors' code
(mdistiller) for CIFAR-100. There its weight rises over the first 20 of 240 epochs, a matter of the weight.
Deviation: the label is left out of the second part exactly, where the code subtracts 1000 from its logit, which
fails once logits lie that far apart. A mixed sample (mixup, cutmix) counts for both its labels, each by its share.
Reduction: sum over classes, mean over samples, times temperature².
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.mixing import by_share
from kdscale.nn.sides import logit_sides

__all__ = ["DecoupledSoftTargets"]

BIBTEX = """
@inproceedings{zhao2022decoupled,
  author = {Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  title = {{Decoupled Knowledge Distillation}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2022},
  eprint = {2203.08919},
  archivePrefix = {arXiv}
}
"""


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
        return by_share(batch, lambda labels: self._against(ours, theirs, labels))

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
    found: tuple[Tensor, Tensor] = _Decoupled.apply(student, teacher, labels[:, None], t)  # type: ignore[no-untyped-call]
    return found


class _Decoupled(torch.autograd.Function):
    """By hand and without boolean indices, which make the host wait for a GPU. Once differentiable."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, labels: Tensor, t: float) -> tuple[Tensor, Tensor]:
        log_p, p_margin = _parts(teacher / t, labels)
        log_q, q_margin = _parts(student / t, labels)
        p, q, p_label, q_label = log_p.exp(), log_q.exp(), p_margin.sigmoid(), q_margin.sigmoid()
        gap = log_p.sub_(log_q).scatter_(1, labels, 0.0)  # -inf less -inf
        target = p_label * (logsigmoid(p_margin) - logsigmoid(q_margin))
        target = target + (-p_margin).sigmoid() * (logsigmoid(-p_margin) - logsigmoid(-q_margin))
        others = (p * gap).sum(dim=1)
        ctx.save_for_backward(q - p, q, q_label - p_label, labels)
        ctx.t = t
        return t**2 * target[:, 0], t**2 * others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        apart, q, label_apart, labels = ctx.saved_tensors
        by_target, by_others = (ctx.t * grad[:, None] for grad in grads)
        by_margin = by_target * label_apart
        gradient = (apart * by_others).addcmul_(q, by_margin, value=-1)
        return gradient.scatter_add_(1, labels, by_margin), None, None, None


def _parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the others' probabilities among themselves, (B, C), -inf at the label; its log odds, (B, 1)."""
    logits = logits - logits.amax(dim=1, keepdim=True)  # a sum of exponentials far from 0 would lose digits
    others = logits.scatter(1, labels, -torch.inf)
    total = others.logsumexp(dim=1, keepdim=True)
    return others.sub_(total), logits.gather(1, labels) - total
