r"""A linear projector and a logarithm: the student's pooled features, normalised, match the teacher's.

Formula:
    \mathcal{L} = \log \sum_{n,d} |a_{nd} - b_{nd}|^\alpha
    a = \mathrm{BN}(W f^s + c), \quad b = \mathrm{BN}(f^t), \quad \mathrm{BN} \text{ without weights}

Source: Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", arXiv:2303.11098,
`log_sum` as in the authors' code for ImageNet, `cross_correlation` as in theirs for DeiT.
Deviation: the sum within the logarithm counts as 1e-30 at least, so features that agree have a finite loss and a
gradient of zero; batch statistics and sums are those of the global batch (`pairs: local`: of each rank's, as the
authors'), and the projector trains like any other part, where in the authors' code each rank's goes its own way.
Reduction: one value a batch. `log_sum` may be negative and grows by about log N with the batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.pairwise import Pairs, added_up, related_count
from kdscale.nn.sides import map_sides, paired_shapes, pooled, total

__all__ = ["Projector"]

BIBTEX = """
@inproceedings{miles2024understanding,
  author = {Miles, Roy and Mikolajczyk, Krystian},
  title = {{Understanding the Role of the Projector in Knowledge Distillation}},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2024},
  eprint = {2303.11098},
  archivePrefix = {arXiv}
}
"""

Form = Literal["log_sum", "cross_correlation"]
LEAST = 1e-30
"""What the sum of differences counts as at least, before its logarithm."""
ADDED = 1e-5
"""To the sum over dimensions before its logarithm, as in the authors' code for DeiT."""


class Projector(Loss):
    """Match features pair by pair behind a linear projector; maps are averaged over their positions."""

    class Config(PluginConfig):
        """Options."""

        form: Form = "log_sum"
        alpha: float = Field(4.0, ge=1, description="exponent of the differences")
        bn_eps: float = Field(1e-4, gt=0, description="added to the variance of each dimension over the batch")
        pairs: Pairs = "global"

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
        config = self.config
        a, b = (standardise(rows, config.bn_eps, config.pairs) for rows in (own, theirs))
        distance = cross_correlation if config.form == "cross_correlation" else log_sum
        return distance(a, b, config.alpha, config.pairs)


def standardise(rows: Float[Tensor, "B D"], eps: float, pairs: Pairs = "global") -> Float[Tensor, "B D"]:
    """Give each dimension mean 0 and variance 1 over the batch: BatchNorm in training, without weights.

    Raises:
        ShapeError: there is one sample only, whose every dimension would become zero.
    """
    count = related_count(len(rows), pairs)
    if count < 2:
        raise ShapeError("projector: compares statistics of the batch, which one sample has none of: train.batch_size")
    if count == len(rows):  # one fused operation
        return functional.batch_norm(rows, None, None, training=True, eps=eps)
    centred = rows - added_up(rows.sum(dim=0), pairs) / count
    variance = added_up(centred.square().sum(dim=0), pairs) / count
    return centred / (variance + eps).sqrt()


def log_sum(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], alpha: float, pairs: Pairs = "global"
) -> Float[Tensor, ""]:
    """Compute log sum |a - b|^alpha over all samples of the batch and all dimensions."""
    total = added_up((student - teacher).abs().pow(alpha).sum(), pairs)
    return total.clamp_min(LEAST).log()


def cross_correlation(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], alpha: float, pairs: Pairs = "global"
) -> Float[Tensor, ""]:
    """Compute log sum_d |c_d - 1|^alpha, c_d the mean over the batch of a_d · b_d."""
    correlation = added_up((student * teacher).sum(dim=0), pairs) / related_count(len(student), pairs)
    return ((correlation - 1).abs().pow(alpha).sum() + ADDED).log()
