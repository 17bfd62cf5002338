r"""Attention transfer: where in the image the student's layers are active must agree with the teacher's.

Formula:
    \mathcal{L} = \sum_{l} \frac{1}{N H_l W_l} \sum_{n} \lVert A^s_{l,n} - A^t_{l,n} \rVert_2^2
    A = \frac{a}{\lVert a \rVert_2}, \quad a_{hw} = \sum_{c} |F_{chw}|^p

Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, section 3.1, and their code.
Deviation: the code's squared differences by default, for which its weight 1000 is meant; `mode: paper` has eq. 2's
norm without a square (and without the factor 1/2, which belongs to the weight). Where sizes differ the larger map is
average-pooled before the power. Each sample's map is scaled before the power, which the normalisation undoes, so that
no power overflows.
Reduction: mean over positions and samples (paper: mean over samples), sum over layers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.sides import map_sides, paired_shapes, pooled_alike, total
from kdscale.nn.squares import channel_squares, mean_squares

__all__ = ["AttentionTransfer"]

BIBTEX = """
@inproceedings{zagoruyko2017paying,
  author = {Zagoruyko, Sergey and Komodakis, Nikos},
  title = {{Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via
    Attention Transfer}},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2017},
  eprint = {1612.03928},
  archivePrefix = {arXiv}
}
"""

EPS = 1e-12


class AttentionTransfer(Loss):
    """Match normalised attention maps, layer by layer."""

    class Config(PluginConfig):
        """Options."""

        p: float = Field(2.0, ge=1, description="power of the activations' absolute values")
        mode: Literal["code", "paper"] = Field("code", description="mean of squared differences, or their norm")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("at", shapes.student, shapes.teacher)
        if all(min(s[1], t[1]) * min(s[2], t[2]) == 1 for s, t in pairs):
            raise ShapeError("at: a map of one position has no attention to compare; tap stages, not pooled features")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's distances, summed over layers. Raises: ShapeError."""
        layers = []
        for ours, theirs in map_sides("at", student, teacher):
            maps = [attention(side, self.config.p) for side in pooled_alike(ours, theirs)]
            layers.append(attention_distance(maps[0], maps[1], self.config.mode))
        return total(layers)


def attention(features: Float[Tensor, "B C H W"], p: float = 2.0) -> Float[Tensor, "B H*W"]:
    """Compute vec(Σ_c |F_c|^p) / ‖·‖₂ of each sample; 0 for a map of zeros."""
    if p == 2:  # float32 holds the squares of whatever half precision does
        strength = channel_squares(features)
        return functional.normalize((strength / _peak(strength)).flatten(1), eps=EPS)
    scaled = features / _peak(features)
    return functional.normalize(scaled.abs().pow(p).sum(dim=1).flatten(1), eps=EPS)


def _peak(values: Float[Tensor, "B *rest"]) -> Tensor:
    """Each sample's largest magnitude, without gradient, to divide by."""
    values = values.detach()
    return values.abs().amax(dim=tuple(range(1, values.dim())), keepdim=True).clamp_min(EPS)


def attention_distance(
    student: Float[Tensor, "B P"], teacher: Float[Tensor, "B P"], mode: Literal["code", "paper"]
) -> Float[Tensor, "B"]:
    """Compute mean (student - teacher)² of each sample, or ‖student - teacher‖₂."""
    return mean_squares(student, teacher) if mode == "code" else torch.linalg.vector_norm(student - teacher, dim=1)
