r"""Soft targets: the student learns the teacher's whole class distribution, softened so that its tail counts.

Formula:
    \mathcal{L} = \frac{T^2}{N} \sum_{n} \sum_{k} p_{nk} \log \frac{p_{nk}}{q_{nk}}
    p_n = \mathrm{softmax}(z^t_n / T), \quad q_n = \mathrm{softmax}(z^s_n / T)

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
Deviation: the KL divergence by default, where the paper writes the cross-entropy with soft targets (`form: ce`);
they differ by the teacher's entropy, so their gradients are equal, and KL is zero when the student agrees.
Reduction: sum over classes, mean over samples, times temperature². `elementmean` divides by the classes too, as
the code of TAKD and others does through torch's default: the same weight is then C times weaker.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.precision import at_least_fp32
from kdscale.nn.sides import logit_sides

__all__ = ["SoftTargets"]

BIBTEX = """
@misc{hinton2015distilling,
  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  title = {{Distilling the Knowledge in a Neural Network}},
  year = {2015},
  eprint = {1503.02531},
  archivePrefix = {arXiv}
}
"""


class SoftTargets(Loss):
    """Match the teacher's class distribution, both softened by `temperature`."""

    class Config(PluginConfig):
        """Options."""

        temperature: float = Field(4.0, gt=0)
        reduction: Literal["batchmean", "elementmean"] = "batchmean"
        form: Literal["kl", "ce"] = "kl"
        temper_student: bool = Field(True, description="false: only the teacher is softened, without temperature²")

    config: Config
    reads = "probabilities"

    @classmethod
    def temperatures(cls, config: Config) -> tuple[float, float]:
        """Without `temper_student` the student's logits stay as they are."""
        return config.temperature, config.temperature if config.temper_student else 1.0

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the divergence of each sample, in nats. Raises: ShapeError."""
        ours, theirs = logit_sides("kd", student, teacher)
        softer, own = self.temperatures(self.config)
        values = soft_targets(ours, theirs, own, softer, self.config.form)
        return values / student.logits.shape[1] if self.config.reduction == "elementmean" else values


def soft_targets(
    student: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    student_t: float,
    teacher_t: float,
    form: Literal["kl", "ce"] = "kl",
) -> Float[Tensor, "B"]:
    """Compute t² · KL(softmax(teacher / t) ‖ softmax(student / t)), or the cross-entropy instead of KL, in nats.

    t² undoes the 1/t² by which softening shrinks the gradient (section 2), hence the student's own temperature.
    """
    ours, theirs = at_least_fp32(student), at_least_fp32(teacher.detach())
    values: Tensor = _SoftTargets.apply(ours, theirs, student_t, teacher_t, form)  # type: ignore[no-untyped-call]
    return values


class _SoftTargets(torch.autograd.Function):
    """By hand: the gradient is the difference of the two distributions. Once differentiable."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, student_t: float, teacher_t: float, form: Literal["kl", "ce"]
    ) -> Tensor:
        log_p = (teacher / teacher_t).log_softmax(dim=1)
        log_q = (student / student_t).log_softmax(dim=1)
        p = log_p.exp()
        gap = log_p.sub_(log_q) if form == "kl" else -log_q
        value = gap.mul_(p).sum(dim=1)
        ctx.save_for_backward(log_q.exp_().sub_(p))
        ctx.student_t = student_t
        return value.mul_(student_t**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * (ctx.student_t * grads[0])[:, None], None, None, None, None
