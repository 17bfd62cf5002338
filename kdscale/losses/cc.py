r"""Correlation congruence: embeddings of the samples shall correlate as the teacher's do.

Formula:
    \mathcal{L} = \frac{1}{N^2} \sum_{i,j} (K^s_{ij} - K^t_{ij})^2
    K_{ij} = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} (e_i \cdot e_j)^p, \quad e_i = \frac{W f_i +
        b}{\lVert W f_i + b \rVert_2}

Source: Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv:1904.01802, eq. 4-9: a bilinear or a
Gaussian kernel (Taylor series of `order`, on embeddings of length 1). `adjacent` is what the common CIFAR-100
benchmark computes instead: products of the embeddings' differences in neighbouring places of the batch, whose order
then matters.
Deviation: the teacher's embedding keeps its initial weights. Trained as well (`teacher_embedding: trained`, as in the
source) it lets both sides agree by becoming constant.
Reduction: squared differences of the kernels over N²; `adjacent` is the mean over N - 1 neighbours, with the
benchmark's weight of 0.02. Several taps add up.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.pairwise import Pairs, gram, related_rows, unit_rows
from kdscale.nn.sides import feature_sides, paired, total

__all__ = ["CorrelationCongruence"]

BIBTEX = """
@inproceedings{peng2019correlation,
  author = {Peng, Baoyun and Jin, Xiao and Liu, Jiaheng and Li, Dongsheng and Wu, Yichao and Liu, Yu and Zhou,
    Shunfeng and Zhang, Zhaoning},
  title = {{Correlation Congruence for Knowledge Distillation}},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2019},
  eprint = {1904.01802},
  archivePrefix = {arXiv}
}
"""


class CorrelationCongruence(Loss):
    """Match the kernel matrix of linear embeddings; widths and sizes of the features are free."""

    class Config(PluginConfig):
        """Options."""

        kernel: Literal["rbf", "bilinear", "adjacent"] = "rbf"
        gamma: float = Field(0.4, gt=0, description="of the Gaussian kernel exp(-gamma ‖x - y‖²)")
        order: int = Field(2, ge=1, description="of the Gaussian kernel's Taylor series")
        embedding: int = Field(128, ge=1, description="width of the embeddings")
        teacher_embedding: Literal["frozen", "trained"] = "frozen"
        pairs: Pairs = "global"

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})
    per_sample = False
    relational = True

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired("cc", shapes.student, shapes.teacher)
        self.embed_s = nn.ModuleList(nn.Linear(math.prod(own), config.embedding) for own, _ in pairs)
        self.embed_t = nn.ModuleList(nn.Linear(math.prod(taught), config.embedding) for _, taught in pairs)
        self.embed_t.requires_grad_(config.teacher_embedding == "trained")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the difference of the correlations. Raises: ShapeError."""
        pairs = zip(feature_sides("cc", student, teacher), self.embed_s, self.embed_t, strict=True)
        with torch.autocast(student.logits.device.type, enabled=False):
            embedded = [(mine(s.flatten(1)), theirs(t.flatten(1))) for (s, t), mine, theirs in pairs]
        return total([self._gap(*pair) for pair in embedded])

    def _gap(self, student: Tensor, teacher: Tensor) -> Tensor:
        own, taught = (related_rows("cc", rows, self.config.pairs) for rows in (student, teacher))
        if self.config.kernel == "adjacent":
            return adjacent_gap(own, taught)
        if self.config.kernel == "bilinear":
            return mse_loss(gram(own), gram(taught))
        first, second = (gaussian(rows, self.config.gamma, self.config.order) for rows in (own, taught))
        return mse_loss(first, second)


def gaussian(rows: Float[Tensor, "N D"], gamma: float, order: int) -> Float[Tensor, "N N"]:
    """Taylor series of exp(-gamma ‖x - y‖²) in x·y, where x and y have length 1."""
    cosines = gram(unit_rows(rows))
    first, *others = (math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order, -1, -1))
    series = first * cosines + others[0]
    for factor in others[1:]:  # Horner's rule: no powers
        series = series * cosines + factor
    return series


def adjacent_gap(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Compute the mean over i of Σ_k |s - t|_ik · |s - t|_(i+1)k."""
    apart = (student - teacher).abs()
    return (apart[:-1] * apart[1:]).sum(1).mean()
