r"""Variational information distillation: predict the teacher's features, each channel with a variance of its own.

Formula:
    \mathcal{L} = \sum_{l} \frac{1}{2 N D_l} \sum_{n} \sum_{c,h,w} \Big( \frac{(F^t_{chw} -
        r_l(F^s)_{chw})^2}{\sigma_c^2} + \log \sigma_c^2 \Big)
    \sigma_c^2 = \mathrm{softplus}(a_c) + \varepsilon

Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", arXiv:1904.05835, eq. 4-6; the
regressor of the common CIFAR-100 benchmark (three 1x1 convolutions without BatchNorm, where the paper's has it).
Deviation: none from the benchmark's form, but that the variances, which train with the student, take no weight decay:
it would pull them to 0.69.
Reduction: mean over channels and space, then over samples (the paper sums); several taps add up. It is a log-likelihood
without its constant, and may be negative.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import softplus

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import map_sides, paired_shapes, pooled_alike, total
from kdscale.nn.squares import squares_of_channels

__all__ = ["VariationalInformation"]

BIBTEX = """
@inproceedings{ahn2019variational,
  author = {Ahn, Sungsoo and Hu, Shell Xu and Damianou, Andreas and Lawrence, Neil D. and Dai, Zhenwen},
  title = {{Variational Information Distillation for Knowledge Transfer}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2019},
  eprint = {1904.05835},
  archivePrefix = {arXiv}
}
"""


class VariationalInformation(Loss):
    """Maximise the likelihood of the teacher's features; of two sizes the larger map is averaged to the smaller."""

    class Config(PluginConfig):
        """Options."""

        initial_variance: float = Field(5.0, gt=0)
        eps: float = Field(1e-5, gt=0, description="least variance")
        hidden: int | None = Field(None, ge=1, description="channels within the regressor; by default the teacher's")

        @model_validator(mode="after")
        def _starts_above_the_least(self) -> VariationalInformation.Config:
            if self.initial_variance < 2 * self.eps:
                raise ValueError(f"initial_variance {self.initial_variance:g} must be at least twice eps {self.eps:g}")
            return self

    config: Config
    revision = 3
    undecayed = ("raw_variances",)
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("vid", shapes.student, shapes.teacher)
        self.regressors = nn.ModuleList(_regressor(s[0], config.hidden or t[0], t[0]) for s, t in pairs)
        above = config.initial_variance - config.eps
        raw = above + math.log(-math.expm1(-above))  # the inverse of softplus, without its overflow
        self.raw_variances = nn.ParameterList(torch.full((taught[0],), raw) for _, taught in pairs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the negative log-likelihood of each sample's features. Raises: ShapeError."""
        values = []
        pairs = map_sides("vid", student, teacher)
        for (own, taught), regress, raw in zip(pairs, self.regressors, self.raw_variances, strict=True):
            own, taught = pooled_alike(own, taught)
            with autocast_as(student.features[0]):
                mean = at_least_fp32(regress(own))
            values.append(gaussian_nll(mean, taught, softplus(raw) + self.config.eps))
        return total(values)


def gaussian_nll(
    mean: Float[Tensor, "B K H W"], target: Float[Tensor, "B K H W"], variance: Float[Tensor, "K"]
) -> Float[Tensor, "B"]:
    """Compute ((target - mean)² / variance + log variance) / 2, averaged over channels and space."""
    errors = squares_of_channels(mean, target) / math.prod(mean.shape[2:])
    return (errors / variance + variance.log()).mean(1) / 2


def _regressor(own: int, hidden: int, taught: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(own, hidden, 1, bias=False), nn.ReLU(inplace=True),
        nn.Conv2d(hidden, hidden, 1, bias=False), nn.ReLU(inplace=True),
        nn.Conv2d(hidden, taught, 1, bias=False),
    )  # fmt: skip
