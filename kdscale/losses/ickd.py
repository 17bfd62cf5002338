r"""Inter-channel correlation: the student's channels shall correlate with each other as the teacher's do.

Formula:
    \mathcal{L} = \frac{1}{N C} \sum_{n} \lVert G^s_n - G^t_n \rVert_F^2
    G_{i \cdot} = \frac{(F F^\top)_{i \cdot}}{\lVert (F F^\top)_{i \cdot} \rVert_2}, \quad F = \text{channels}
        \times \text{positions, the student's behind a } 1 \times 1 \text{ layer}

Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
arXiv:2202.03680, section 3.2 (ICKD-C).
Deviation: the authors' second, unused embedding is left out. Channels that are zero everywhere pass no gradient.
Reduction: squared differences of the channels' row-normalised Gram matrices over C, a mean over samples: the authors'
code for CIFAR, with a weight of 2.5. `paper` divides by C². `imagenet` divides by C and by the global batch's size:
the authors' code for ImageNet, whose weight has to grow with the batch. Several taps add up.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from kdscale import ranks
from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.pairwise import gram, unit_rows
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import map_sides, paired_shapes, total
from kdscale.nn.squares import sum_squares
from kdscale.nn.sync_bn import needs_two_values

__all__ = ["InterChannel"]

BIBTEX = """
@inproceedings{liu2021exploring,
  author = {Liu, Li and Huang, Qingle and Lin, Sihao and Xie, Hongwei and Wang, Bing and Chang, Xiaojun and Liang,
    Xiaodan},
  title = {{Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation}},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2021},
  eprint = {2202.03680},
  archivePrefix = {arXiv}
}
"""


class InterChannel(Loss):
    """Match the correlation of channels, the student's brought to the teacher's number of them; sizes are free."""

    class Config(PluginConfig):
        """Options."""

        reduction: Literal["cifar", "paper", "imagenet"] = "cifar"

    config: Config
    revision = 2
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own[0], taught[0], 1, bias=False), nn.BatchNorm2d(taught[0]))
            for own, taught in paired_shapes("ickd", shapes.student, shapes.teacher)
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the difference of the correlations of each sample. Raises: ShapeError."""
        values = []
        for (own, taught), embed in zip(map_sides("ickd", student, teacher), self.embed, strict=True):
            needs_two_values("ickd", own, embed)
            with autocast_as(student.features[0]):
                embedded = at_least_fp32(embed(own))
            value = channel_gap(embedded, taught)
            values.append(value / taught.shape[1] if self.config.reduction == "paper" else value)
        summed = total(values)
        return summed / (len(summed) * ranks.world()) if self.config.reduction == "imagenet" else summed


def channel_gap(student: Float[Tensor, "B K H W"], teacher: Float[Tensor, "B K I J"]) -> Float[Tensor, "B"]:
    """Compute ‖G_t - G_s‖² / K of the K x K Gram matrices of the channels with rows of length 1."""
    own, taught = (unit_rows(gram(features.flatten(2))) for features in (student, teacher))
    return sum_squares(own, taught) / teacher.shape[1]
