r"""Logits matched on three levels: each sample's soft targets, how classes go together, and how samples do.

Formula:
    \mathcal{L} = \sum_{T} \Big( \lambda_{samples} \frac{T^2}{N} \sum_{n} \sum_{k} p_{nk} \log
        \frac{p_{nk}}{q_{nk}} + \frac{\lambda_{classes}}{C} \lVert Q^\top Q - P^\top P \rVert_F^2 +
        \frac{\lambda_{batch}}{N} \lVert Q Q^\top - P P^\top \rVert_F^2 \Big)
    P_{nk} = p_{nk} = \mathrm{softmax}(z^t_n / T)_k, \quad Q_{nk} = q_{nk} = \mathrm{softmax}(z^s_n / T)_k

Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023; the sums as in the authors' code.
Deviation: one view a sample, where the authors teach a weak and a strong one. The masks of their code are left out:
multiplied behind the sums, they scale the weak view's terms by the share of unsure samples (or classes) and select
none. Samples and classes go together over the global batch (`pairs: local`: over each rank's).
Reduction: soft targets as in kd; each Gram matrix's squared differences summed over its entries, divided by its rows,
without temperature²; all summed over temperatures. One value a batch.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.pairwise import Pairs, added_up, gathered
from kdscale.nn.sides import logit_sides, total

__all__ = ["MultiLevelLogits"]

BIBTEX = """
@inproceedings{jin2023multilevel,
  author = {Jin, Ying and Wang, Jiaqi and Lin, Dahua},
  title = {{Multi-Level Logit Distillation}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2023}
}
"""


class MultiLevelLogits(Loss):
    """Match the teacher's logits sample by sample, class by class and across the batch, at several temperatures."""

    class Config(PluginConfig):
        """Options."""

        softened_at: tuple[float, ...] = Field((2.0, 3.0, 4.0, 5.0, 6.0), description="temperatures, added up")
        samples: float = Field(1.0, ge=0, description="weight of each sample's soft targets")
        classes: float = Field(1.0, ge=0, description="weight of how classes go together")
        batch: float = Field(1.0, ge=0, description="weight of how samples go together")
        pairs: Pairs = "global"

        @field_validator("softened_at")
        @classmethod
        def _above_zero(cls, value: tuple[float, ...]) -> tuple[float, ...]:
            if not value or min(value) <= 0:
                raise ValueError("softened_at must be one or more temperatures above 0, such as [2, 4]")
            return value

    config: Config
    per_sample: ClassVar[bool] = False
    relational: ClassVar[bool] = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over levels and temperatures. Raises: ShapeError."""
        own, theirs = logit_sides("mlkd", student, teacher)
        with torch.autocast(own.device.type, enabled=False):
            values = [self._level(own, theirs, temperature) for temperature in self.config.softened_at]
        return total(values)

    def _level(self, own: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        log_q, log_p = (own / temperature).log_softmax(dim=1), (theirs / temperature).log_softmax(dim=1)
        q, p, pairs = log_q.exp(), log_p.exp(), self.config.pairs
        value = self.config.samples * temperature**2 * (p * (log_p - log_q)).sum(dim=1).mean()
        value = value + self.config.classes * class_distance(q, p, pairs)
        return value + self.config.batch * batch_distance(q, p, pairs)


def class_distance(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], pairs: Pairs = "global"
) -> Float[Tensor, ""]:
    """Compare the C x C Gram matrices of classes over the batch."""
    gap = added_up(student.mT @ student - teacher.mT @ teacher, pairs)
    return gap.square().sum() / len(gap)


def batch_distance(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], pairs: Pairs = "global"
) -> Float[Tensor, ""]:
    """Compare the N x N Gram matrices of the batch's samples."""
    q, p = gathered(student, pairs), gathered(teacher, pairs)
    return (q @ q.mT - p @ p.mT).square().sum() / len(q)
