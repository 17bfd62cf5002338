r"""Gradient attention transfer: the loss must be as sensitive to each pixel in the student as in the teacher.

Formula:
    \mathcal{L} = \frac{1}{N} \sum_{n} \left\lVert \frac{\partial}{\partial x_n} \mathrm{CE}(z^s_n, y_n) -
        \frac{\partial}{\partial x_n} \mathrm{CE}(z^t_n, y_n) \right\rVert_2

Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, section 3.2, eq. 3 and 4.
Deviation: none known, but the authors never released theirs. The factor 1/2 belongs to the weight; `mode: squared`
leaves the root out; their optional symmetry under flips is not here. Pixels are in [0, 1] before normalisation, so
that networks with different inputs compare. In training BatchNorm makes each pixel matter to the whole batch's loss,
and the derivative includes it, as any framework's does.
Reduction: mean over samples.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.errors import ShapeError
from kdscale.nn.mixing import by_share
from kdscale.nn.precision import at_least_fp32

__all__ = ["GradientAttention"]

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


class GradientAttention(Loss):
    """Match the derivatives of the cross-entropy by the image."""

    class Config(PluginConfig):
        """Options."""

        mode: Literal["norm", "squared"] = Field("norm", description="of the difference of the two derivatives")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"logits", "labels"})
    needs_input_grad: ClassVar[bool] = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's distance, in nats per unit of a pixel. Raises: ShapeError."""
        theirs = self._derivative(teacher, batch, create_graph=False).detach()
        ours = self._derivative(student, batch, create_graph=torch.is_grad_enabled())
        difference = (ours - theirs).flatten(1)
        if self.config.mode == "squared":
            return difference.square().sum(dim=1)
        norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
        return norm

    def _derivative(self, side: Outputs | None, batch: Batch, *, create_graph: bool) -> Tensor:
        if side is None or side.pixels is None:
            raise ShapeError(
                "at_grad: differentiates by the pixels that both networks saw, which a live student and a live teacher "
                "answer with; a cached teacher, an ensemble or no teacher has none"
            )
        logits = at_least_fp32(side.logits)
        values = by_share(batch, lambda labels: cross_entropy(logits, labels, reduction="none"))
        return at_least_fp32(input_derivative(values, side.pixels, create_graph=create_graph))


def input_derivative(
    values: Float[Tensor, "B"], pixels: Float[Tensor, "B ..."], *, create_graph: bool
) -> Float[Tensor, "B ..."]:
    """Compute d(Σ_n value_n) / d pixels: of the sum, so that it does not shrink as the batch grows."""
    with torch.enable_grad():
        [derivative] = torch.autograd.grad(values.sum(), pixels, create_graph=create_graph, retain_graph=True)
    return derivative
