r"""Relational KD: the student keeps the distances and angles between samples, not the features themselves.

Formula:
    \mathcal{L} = \frac{\lambda_D}{N^2} \sum_{i,j} h(\psi^s_{ij} - \psi^t_{ij}) + \frac{\lambda_A}{N^3}
        \sum_{i,j,k} h(\cos^s_{ijk} - \cos^t_{ijk})
    \psi_{ij} = \frac{\lVert f_i - f_j \rVert_2}{\mu}, \quad \mu = \frac{1}{N (N - 1)} \sum_{i,j} \lVert f_i - f_j
        \rVert_2
    \cos_{ijk} = \frac{(f_i - f_j) \cdot (f_k - f_j)}{\lVert f_i - f_j \rVert_2 \lVert f_k - f_j \rVert_2}, \quad
        h(x) = \frac{x^2}{2} \text{ where } |x| < 1, \text{ else } |x| - \frac{1}{2}

Source: Park et al., "Relational Knowledge Distillation", arXiv:1904.05068, eq. 3-8; weights of 25 and 50 from the
common CIFAR-100 benchmark (the authors' own for metric learning: 1 and 2).
Deviation: distances by differences rather than through the Gram matrix, in which close neighbours drown.
Reduction: mean of the Huber values over all N² pairs and all N³ triplets, degenerate ones among them, as in the
authors' code (the paper sums); several taps add up.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import smooth_l1_loss

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.pairwise import Pairs, directions, distances, own_rows, related_rows
from kdscale.nn.sides import feature_sides, total

__all__ = ["Relational"]

BIBTEX = """
@inproceedings{park2019relational,
  author = {Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu},
  title = {{Relational Knowledge Distillation}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2019},
  eprint = {1904.05068},
  archivePrefix = {arXiv}
}
"""


class Relational(Loss):
    """Match distances between samples, in units of their mean, and angles between them; widths are free."""

    class Config(PluginConfig):
        """Options."""

        distance: float = Field(25.0, ge=0, description="weight of the distances")
        angle: float = Field(50.0, ge=0, description="weight of the angles")
        chunk: int = Field(8, ge=1, description="corners at a time: angles take about chunk · N · (N + width) numbers")
        pairs: Pairs = "global"

        @model_validator(mode="after")
        def _something_weighs(self) -> Relational.Config:
            if not self.distance and not self.angle:
                raise ValueError("distance and angle are both 0: nothing is left to compare")
            return self

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})
    per_sample = False
    relational = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of both; of the angles this rank's share, whose mean over ranks counts.

        Raises:
            ShapeError: there is one sample, or a feature without counterpart.
        """
        return total([self._gap(*pair) for pair in feature_sides("rkd", student, teacher)])

    def _gap(self, student: Tensor, teacher: Tensor) -> Tensor:
        config, parts = self.config, []
        own, taught = (related_rows("rkd", features, config.pairs) for features in (student, teacher))
        if config.distance:
            parts.append(config.distance * distance_gap(own, taught))
        if config.angle:
            corners = own_rows(len(own), config.pairs)
            parts.append(config.angle * angle_gap(own, taught, corners, config.chunk))
        return total(parts)


def distance_gap(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Compute the mean Huber difference of distances, each side's in units of its own mean."""
    return smooth_l1_loss(_relative(student), _relative(teacher))


def angle_gap(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"], corners: range, chunk: int
) -> Float[Tensor, ""]:
    """Compute the mean Huber difference of the cosines at some corners, between any two other samples."""
    gap: Tensor = _AngleGap.apply(student, teacher, corners, chunk)  # type: ignore[no-untyped-call]
    return gap


def _relative(rows: Tensor) -> Tensor:
    apart = distances(rows)
    return apart / (apart.sum() / (len(rows) * (len(rows) - 1)))


class _AngleGap(torch.autograd.Function):
    """Differentiates each chunk at once, by hand, and keeps only the sum: memory does not grow as N³."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, corners: range, chunk: int) -> Tensor:
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        for start in range(corners.start, corners.stop, chunk):
            at = slice(start, min(start + chunk, corners.stop))
            with torch.autocast(student.device.type, enabled=False):
                _add_corners(student, teacher, at, total, gradient if ctx.needs_input_grad[0] else None)
        count = len(corners) * len(student) ** 2
        ctx.save_for_backward(gradient / count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * grads[0], None, None, None


def _add_corners(student: Tensor, teacher: Tensor, at: slice, total: Tensor, gradient: Tensor | None) -> None:
    """Add the Huber values of some corners' cosines to `total`, and what they give the student to `gradient`."""
    towards, _ = directions(teacher, at)
    gap = (towards @ towards.mT).neg_()
    towards, length = directions(student, at)
    gap.baddbmm_(towards, towards.mT)
    slope = gap.clamp(-1, 1)
    if gradient is not None:
        pull = (slope @ towards).mul_(2)  # both sides of a cosine: the matrix of slopes is symmetric
        pull.addcmul_(towards, (pull * towards).sum(-1, keepdim=True), value=-1).div_(length)
        gradient += pull.sum(0)
        gradient[at] -= pull.sum(1)
    total += gap.sub_(slope, alpha=0.5).mul_(slope).sum()  # Huber's value is slope · gap - slope² / 2
