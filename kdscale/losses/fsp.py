r"""Flow between layers: the products of two layers' channels, summed over space, must agree with the teacher's.

Formula:
    \mathcal{L} = \frac{1}{N} \sum_{n} \sum_{l} \lVert G^s_{l,n} - G^t_{l,n} \rVert_F^2
    (G_{l,n})_{ij} = \frac{1}{H W} \sum_{h,w} (F_{l,n})_{ihw} \, (F_{l+1,n})_{jhw}

Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, eq. 1 and 2 with every lambda 1.
Deviation: none by default. `reduction: mean` with `pool: avg` is RepDistiller's, `reduction: columns` is that of
torchdistill (norms of columns, without a square). Student and teacher need equal channels; `adapter` lets a trained
1x1 convolution stand before each tap of the student where they differ, which the paper does not have. `shuffle` is the
paper's way to students that differ: each learns from the teacher's matrices with rows and columns in another order.
Reduction: sum over the matrix, mean over samples, sum over pairs of consecutive taps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.draws import hash64, seed_of
from kdscale.errors import ShapeError
from kdscale.nn.pairwise import inner_products
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import map_sides, paired_shapes, pooled_alike, total
from kdscale.nn.squares import mean_squares, sum_squares

__all__ = ["FlowBetweenLayers"]

BIBTEX = """
@inproceedings{yim2017gift,
  author = {Yim, Junho and Joo, Donggyu and Bae, Jihoon and Kim, Junmo},
  title = {{A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning}},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2017}
}
"""

Reduction = Literal["sum", "mean", "columns"]
Pool = Literal["max", "avg"]


class FlowBetweenLayers(Loss):
    """Match the matrices of products between consecutive taps (FSP matrices)."""

    class Config(PluginConfig):
        """Options."""

        reduction: Reduction = Field("sum", description="of squared differences, or the sum of their columns' norms")
        pool: Pool = Field("max", description="how the larger of two consecutive maps is brought to the smaller's size")
        adapter: bool = Field(False, description="1x1 convolutions on the student where channels differ")
        shuffle: int | None = Field(None, description="seed of an order of the teacher's channels; null: as they are")

    config: Config
    revision = 2
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("fsp", shapes.student, shapes.teacher)
        if len(pairs) < 2:
            raise ShapeError("fsp: lies between consecutive taps, so it needs two or more on each side, not one")
        channels = [(s[0], t[0]) for s, t in pairs]
        if not config.adapter and any(own != other for own, other in channels):
            raise ShapeError(
                f"fsp: the student's channels {[s for s, _ in channels]} must equal the teacher's "
                f"{[t for _, t in channels]}; tap other layers, or set adapter: true"
            )
        self.adapters = nn.ModuleList(nn.Identity() if s == t else nn.Conv2d(s, t, 1, bias=False) for s, t in channels)
        if config.shuffle is not None:
            for tap, (_, theirs) in enumerate(channels):
                self.register_buffer(f"order{tap}", order(config.shuffle, tap, theirs), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's distance, summed over pairs of taps. Raises: ShapeError."""
        sides = map_sides("fsp", student, teacher)
        with autocast_as(student.features[0]):
            ours = [at_least_fp32(adapter(own)) for adapter, (own, _) in zip(self.adapters, sides, strict=True)]
        flows, wanted = (
            [flow(first, second, self.config.pool) for first, second in pairwise(maps)]
            for maps in (ours, [other for _, other in sides])
        )
        return total(
            [
                flow_distance(own, other, self.config.reduction)
                for own, other in zip(flows, self._shuffled(wanted), strict=True)
            ]
        )

    def _shuffled(self, flows: list[Tensor]) -> list[Tensor]:
        """The teacher's matrices: a tap's channels stand in one order in both matrices that it is part of."""
        if self.config.shuffle is None:
            return flows
        orders = [self.get_buffer(f"order{tap}") for tap in range(len(flows) + 1)]
        return [each[:, rows][:, :, columns] for each, (rows, columns) in zip(flows, pairwise(orders), strict=True)]


def order(seed: int, tap: int, channels: int) -> Int64[Tensor, "C"]:
    """An order of a tap's channels, a function of the seed alone: every rank and every resume has the same."""
    drawn = hash64(seed_of("fsp", seed, tap), np.arange(channels))
    return torch.from_numpy(np.argsort(drawn, kind="stable").astype(np.int64))


def flow(
    first: Float[Tensor, "B C H W"], second: Float[Tensor, "B C2 H2 W2"], pool: Pool = "max"
) -> Float[Tensor, "B C C2"]:
    """Compute 1/(h w) Σ_hw first_i second_j of each sample, the larger map pooled to the smaller's size."""
    one, two = (side.flatten(2) for side in pooled_alike(first, second, pool))
    return inner_products(one, two) / one.shape[2]


def flow_distance(
    student: Float[Tensor, "B C C2"], teacher: Float[Tensor, "B C C2"], reduction: Reduction
) -> Float[Tensor, "B"]:
    """Compute ‖student - teacher‖² of each sample (Frobenius), its mean form, or Σ_j of the columns' norms."""
    if reduction == "columns":
        columns: Tensor = torch.linalg.vector_norm(student - teacher, dim=1)
        return columns.sum(dim=1)
    return sum_squares(student, teacher) if reduction == "sum" else mean_squares(student, teacher)
