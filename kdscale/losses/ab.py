r"""Activation boundaries: the student's neurons fire for the inputs that the teacher's fire for.

Formula:
    \mathcal{L} = \frac{3}{1000} \sum_{l=1}^{L} 2^{l - L} \, \frac{1}{N} \sum_{n} \sum_{i} \max(0, \mu - \sigma_i
        \, r_l(F^s_{l,n})_i)^2
    \sigma_i = 1 \text{ where } (F^t_{l,n})_i > 0, \text{ else } -1

Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
arXiv:1811.03233; reductions and weights of layers as in the authors' code.
Deviation: the teacher answers in eval mode, where the authors' script leaves its BatchNorm in training.
Taps: before the last ReLU of each stage (`stage1.pre` ...), from shallow to deep, on both sides.
Reduction: `sum` over the elements of a layer, mean over samples, layers weighted 1, 1/2, 1/4 ... from the last one
back, times 3/1000; `mean` over all elements of a layer, layers added up: about C·H·W times weaker before that factor.
Figure: `signs`, the share of neurons that fire for what the teacher's fire for, a mean over layers.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.measures import Measures
from kdscale.nn.precision import at_least_fp32, autocast_as
from kdscale.nn.sides import MapShape, map_sides, paired_shapes, total
from kdscale.nn.sync_bn import needs_two_values

__all__ = ["ActivationBoundaries"]

BIBTEX = """
@inproceedings{heo2019knowledge,
  author = {Heo, Byeongho and Lee, Minsik and Yun, Sangdoo and Choi, Jin Young},
  title = {{Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons}},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2019},
  eprint = {1811.03233},
  archivePrefix = {arXiv}
}
"""

SCALE = 3 / 1000
"""What the authors multiply the sum over layers by."""


class ActivationBoundaries(Loss, Measures):
    """Push each neuron behind a margin, on the side of zero on which the teacher's is."""

    class Config(PluginConfig):
        """Options."""

        margin: float = Field(1.0, gt=0)
        reduction: Literal["sum", "mean"] = "sum"
        connect: Literal["always", "where_needed"] = Field(
            "always", description="where_needed: layers of equal channels are compared as they are"
        )

    config: Config
    revision = 2
    figures = ("signs",)
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        pairs = paired_shapes("ab", shapes.student, shapes.teacher)
        self.connectors = nn.ModuleList([self._connector(*pair) for pair in pairs])

    def _connector(self, student: MapShape, teacher: MapShape) -> nn.Module:
        if student[1:] != teacher[1:]:
            raise ShapeError(
                f"ab: the student's map is {student[1]}x{student[2]}, the teacher's {teacher[1]}x{teacher[2]}; "
                "neurons are compared one by one: tap stages of equal size"
            )
        if self.config.connect == "where_needed" and student[0] == teacher[0]:
            return nn.Identity()
        conv = nn.Conv2d(student[0], teacher[0], 1, bias=False)
        nn.init.normal_(conv.weight, std=(2 / teacher[0]) ** 0.5)
        return nn.Sequential(conv, nn.BatchNorm2d(teacher[0]))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the weighted sum over layers of each sample. Raises: ShapeError."""
        sides = map_sides("ab", student, teacher)
        with autocast_as(student.features[0]):
            pairs = [(self._connected(connect, s), t) for connect, (s, t) in zip(self.connectors, sides, strict=True)]
        layers = [boundary_distance(s, t, self.config.margin) for s, t in pairs]
        self.measured = {"signs": torch.stack([agreement(s.detach(), t) for s, t in pairs]).mean()}
        if self.config.reduction == "mean":
            return total([layer / math.prod(t.shape[1:]) for layer, (_, t) in zip(layers, sides, strict=True)])
        last = len(layers) - 1
        return total([SCALE * 2.0 ** (j - last) * layer for j, layer in enumerate(layers)])

    def _connected(self, connect: nn.Module, student: Tensor) -> Tensor:
        needs_two_values("ab", student, connect)
        return at_least_fp32(connect(student))


def agreement(student: Float[Tensor, "B *rest"], teacher: Float[Tensor, "B *rest"]) -> Float[Tensor, ""]:
    """Compute the share of neurons on the same side of zero on both sides; zero itself counts as not active."""
    return ((student > 0) == (teacher > 0)).count_nonzero() / student.numel()


def boundary_distance(
    student: Float[Tensor, "B *rest"], teacher: Float[Tensor, "B *rest"], margin: float
) -> Float[Tensor, "B"]:
    """Sum max(0, margin - s)² over neurons of the teacher that are active (t > 0), max(0, margin + s)² over others.

    Differentiable once, by the student.
    """
    found: Tensor = _BoundaryDistance.apply(student, teacher, margin)  # type: ignore[no-untyped-call]
    return found


class _BoundaryDistance(Function):
    """By hand, in place: on a CPU a choice between two maps alone costs ten times what all of this does."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, margin: float) -> Tensor:
        side = torch.gt(teacher, 0, out=torch.empty_like(student)).mul_(-2).add_(1)  # -1 active, 1 not
        beyond = torch.mul(student, side).add_(margin).relu_()
        lengths: Tensor = vector_norm(beyond, dim=tuple(range(1, beyond.dim())))
        ctx.save_for_backward(beyond.mul_(side))
        return lengths.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [signed] = ctx.saved_tensors
        return signed * (2 * grads[0]).view(-1, *[1] * (signed.dim() - 1)), None, None
