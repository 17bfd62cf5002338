"""A linear projector and a logarithm: the student's pooled features, normalised, match the teacher's.

Source: Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", arXiv:2303.11098,
`log_sum` as in the authors' code for ImageNet, `cross_correlation` as in theirs for DeiT.
Deviation: the sum within the logarithm has 1e-12 added, so features that agree have a finite loss and a gradient of
zero; batch statistics and sums are those of the global batch, and the projector trains like any other part, where in
the authors' code each rank's projector goes its own way.
Reduction: one value a batch. `log_sum` may be negative and grows by about log N with the batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdscale import ranks
from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.sides import map_sides, paired_shapes, pooled, total

__all__ = ["Projector"]

Form = Literal["log_sum", "cross_correlation"]
LEAST: dict[Form, float] = {"log_sum": 1e-12, "cross_correlation": 1e-5}
"""Added to the sum before its logarithm."""


class Projector(Loss):
    """Match features pair by pair behind a linear projector; maps are averaged over their positions."""

    class Config(PluginConfig):
        """Options."""

        form: Form = "log_sum"
        alpha: float = Field(4.0, ge=1, description="exponent of the differences")
        bn_eps: float = Field(1e-4, gt=0, description="added to the variance of each dimension over the batch")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})
    per_sample: ClassVar[bool] = False
    relational: ClassVar[bool] = True

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("projector", shapes.student, shapes.teacher)
        self.projectors = nn.ModuleList([nn.Linear(own, theirs) for (own, *_), (theirs, *_) in pairs])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the batch, summed over taps. Raises: ShapeError."""
        pairs = zip(self.projectors, map_sides("projector", student, teacher), strict=True)
        with torch.autocast(student.logits.device.type, enabled=False):
            values = [self._pair(project(pooled(s)), pooled(t)) for project, (s, t) in pairs]
        return total(values)

    def _pair(self, own: Tensor, theirs: Tensor) -> Tensor:
        a, b = standardise(own, self.config.bn_eps), standardise(theirs, self.config.bn_eps)
        if self.config.form == "cross_correlation":
            return cross_correlation(a, b, self.config.alpha)
        return log_sum(a, b, self.config.alpha)


def standardise(rows: Float[Tensor, "B D"], eps: float) -> Float[Tensor, "B D"]:
    """Give each dimension mean 0 and variance 1 over the global batch: BatchNorm in training, without weights.

    Raises:
        ShapeError: there is one sample only, whose every dimension would become zero.
    """
    count = len(rows) * ranks.world()
    if count < 2:
        raise ShapeError("projector: compares statistics of the batch, which one sample has none of: train.batch_size")
    if ranks.world() == 1:  # one fused operation
        return functional.batch_norm(rows, None, None, training=True, eps=eps)
    centred = rows - ranks.sum_with_gradient(rows.sum(dim=0)) / count
    variance = ranks.sum_with_gradient(centred.square().sum(dim=0)) / count
    return centred / (variance + eps).sqrt()


def log_sum(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], alpha: float) -> Float[Tensor, ""]:
    """Compute log sum |a - b|^alpha over all samples of the global batch and all dimensions."""
    total = ranks.sum_with_gradient((student - teacher).abs().pow(alpha).sum())
    return (total + LEAST["log_sum"]).log()


def cross_correlation(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], alpha: float) -> Float[Tensor, ""]:
    """Compute log sum_d |c_d - 1|^alpha, c_d the mean over the global batch of a_d · b_d."""
    count = len(student) * ranks.world()
    correlation = ranks.sum_with_gradient((student * teacher).sum(dim=0)) / count
    return ((correlation - 1).abs().pow(alpha).sum() + LEAST["cross_correlation"]).log()
