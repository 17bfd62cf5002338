r"""Knowledge review: each level of the teacher teaches the student's levels up to its own, fused from the deepest on.

Formula:
    \mathcal{L} = \frac{1}{N} \sum_{n} \sum_{l} H(\mathrm{conv}_{3 \times 3}(U_{l,n}), F^t_{l,n})
    U_l = \alpha_l \odot X_l + \beta_l \odot \mathrm{up}(U_{l+1}), \quad X_l = \mathrm{conv}_{1 \times 1}(F^s_l)
    (\alpha_l, \beta_l) = \mathrm{sigmoid}(\mathrm{conv}_{1 \times 1}[X_l, \mathrm{up}(U_{l+1})])
    H(s, t) = \frac{\sum_{i} 2^{-i} \, \mathrm{mean} (\mathrm{pool}_i(s) - \mathrm{pool}_i(t))^2}{\sum_{i} 2^{-i}},
        \quad \mathrm{pool}_0 = \text{as it is}

Source: Chen et al., "Distilling Knowledge via Knowledge Review", arXiv:2104.09044; attention-based
fusion (ABF) and hierarchical context loss (HCL) as in the authors' code.
Deviation: the teacher answers in eval mode, where the authors' script for CIFAR leaves its BatchNorm in training;
maps need not be square.
Taps: all stages and the pooled feature, from shallow to deep; the teacher's stages before their last ReLU.
Reduction: mean over the elements of a level, then a weighted mean over its pooled sizes, sum over levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import map_sides, paired_shapes, total
from kdscale.nn.sync_bn import needs_two_values

__all__ = ["KnowledgeReview"]

BIBTEX = """
@inproceedings{chen2021distilling,
  author = {Chen, Pengguang and Liu, Shu and Zhao, Hengshuang and Jia, Jiaya},
  title = {{Distilling Knowledge via Knowledge Review}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2021},
  eprint = {2104.09044},
  archivePrefix = {arXiv}
}
"""


class KnowledgeReview(Loss):
    """Fuse the student's levels from deep to shallow and match each with the teacher's."""

    class Config(PluginConfig):
        """Options."""

        most_channels: int = Field(512, ge=1, description="of the fused maps: at most as many as the last level has")
        pool_sizes: tuple[int, ...] = Field((4, 2, 1), description="sizes that a level is compared at besides its own")

    config: Config
    revision = 2
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("reviewkd", shapes.student, shapes.teacher)
        middle = min(config.most_channels, pairs[-1][0][0])
        last = len(pairs) - 1
        levels = [Fusion(own[0], middle, theirs[0], deepest=i == last) for i, (own, theirs) in enumerate(pairs)]
        self.levels = nn.ModuleList(levels)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the sum over levels of each sample. Raises: ShapeError."""
        own, theirs = zip(*map_sides("reviewkd", student, teacher), strict=True)
        with autocast_as(student.features[0]):
            fused = [at_least_fp32(level) for level in self.fuse(own, [t.shape[2:] for t in theirs])]
        return total([context_distance(s, t, self.config.pool_sizes) for s, t in zip(fused, theirs, strict=True)])

    def fuse(self, features: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Give every level, shallow to deep, what it and the deeper ones hold: the teacher's channels and sizes."""
        found: list[Tensor] = []
        residual: Tensor | None = None
        for level, feature, size in reversed(list(zip(self.levels, features, sizes, strict=True))):
            answer, residual = level(feature, residual, size)
            found.append(answer)
        return found[::-1]


class Fusion(nn.Module):
    """One level (ABF): weighs its map and the deeper levels' at every position, by attention over both."""

    def __init__(self, inward: int, middle: int, outward: int, *, deepest: bool) -> None:
        super().__init__()
        into, out_of = nn.Conv2d(inward, middle, 1, bias=False), nn.Conv2d(middle, outward, 3, padding=1, bias=False)
        self.enter = nn.Sequential(into, nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(out_of, nn.BatchNorm2d(outward))
        self.attention = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        for conv in (into, out_of):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Give this level's answer at the teacher's `size`, and what is handed on to the shallower level."""
        needs_two_values("reviewkd", x, self.enter)
        x = self.enter(x)
        if self.attention is not None and deeper is not None:
            deeper = functional.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        if tuple(x.shape[2:]) != tuple(size):
            x = functional.interpolate(x, tuple(size), mode="nearest")
        needs_two_values("reviewkd", x, self.leave)
        return self.leave(x), x


def context_distance(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], pool_sizes: Sequence[int]
) -> Float[Tensor, "B"]:
    """HCL: mean squares at full size and averaged down to smaller ones, weighted 1, 1/2, 1/4 ... in order of use."""
    used = [size for size in pool_sizes if size < min(student.shape[2:])]
    gaps = [student - teacher.detach()]  # averages are linear: the difference of two is the average of the difference
    gaps += [functional.adaptive_avg_pool2d(gaps[0], size) for size in used]
    weights = [0.5**i for i in range(len(gaps))]
    values = [w * gap.square().flatten(1).mean(dim=1) for w, gap in zip(weights, gaps, strict=True)]
    return total(values) / sum(weights)
