r"""Probabilistic knowledge transfer: each sample sees its neighbours with the probabilities of the teacher.

Formula:
    \mathcal{L} = \frac{1}{N^2} \sum_{i,j} p_{ij} \log \frac{p_{ij} + \varepsilon}{q_{ij} + \varepsilon}
    p_{ij} = \frac{1 + \cos(f^t_i, f^t_j)}{\sum_{m} (1 + \cos(f^t_i, f^t_m))}, \quad q_{ij} = \frac{1 + \cos(f^s_i,
        f^s_j)}{\sum_{m} (1 + \cos(f^s_i, f^s_m))}

Source: Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv:1803.10837,
section 3, with the cosine kernel (cos + 1) / 2.
Deviation: by default as the authors' code computes it, a sample being its own neighbour too; `offdiagonal` leaves it
out, as the paper does. A sample whose features are all zero passes no gradient (the code's is nan).
Reduction: `code` is the mean over all N² pairs, which shrinks as 1/N²: the authors' weight of 30000 belongs to
64 samples. `row` and `offdiagonal` sum over the neighbours and average over samples, N times as much. Several taps
add up.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.pairwise import Pairs, gram, related_rows, unit_rows
from kdscale.nn.sides import feature_sides, total

__all__ = ["ProbabilisticTransfer"]

BIBTEX = """
@inproceedings{passalis2018learning,
  author = {Passalis, Nikolaos and Tefas, Anastasios},
  title = {{Learning Deep Representations with Probabilistic Knowledge Transfer}},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2018},
  eprint = {1803.10837},
  archivePrefix = {arXiv}
}
"""

Reduction = Literal["code", "row", "offdiagonal"]


class ProbabilisticTransfer(Loss):
    """Match the distribution over neighbours that each sample sees; widths of the features are free."""

    class Config(PluginConfig):
        """Options."""

        reduction: Reduction = "code"
        eps: float = Field(1e-7, gt=0, description="added to lengths, and to both probabilities of a pair")
        pairs: Pairs = "global"

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})
    per_sample = False
    relational = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the divergence of the neighbourhoods, in nats. Raises: ShapeError."""
        return total([self._gap(*pair) for pair in feature_sides("pkt", student, teacher)])

    def _gap(self, student: Tensor, teacher: Tensor) -> Tensor:
        own, taught = (related_rows("pkt", features, self.config.pairs) for features in (student, teacher))
        return neighbour_gap(own, taught, self.config.reduction, self.config.eps)


def neighbour_gap(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"], reduction: Reduction = "code", eps: float = 1e-7
) -> Float[Tensor, ""]:
    """Compute KL(p_t ‖ p_s) of the distributions over neighbours."""
    itself = reduction != "offdiagonal"
    q, p = _neighbours(student, itself, eps), _neighbours(teacher, itself, eps)
    values = p * ((p + eps) / (q + eps)).log()
    return values.mean() if reduction == "code" else values.sum(1).mean()


def _neighbours(rows: Float[Tensor, "N D"], itself: bool, eps: float) -> Float[Tensor, "N N"]:  # noqa: FBT001
    """Probability with which sample i picks sample j."""
    # twice the kernel, since its sum divides it; opposite rows round below 0
    kernel = (gram(unit_rows(rows, eps, added=eps)) + 1).clamp_min(0)
    if not itself:
        kernel = kernel.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), 0.0)
    return kernel / kernel.sum(1, keepdim=True).clamp_min(2 * eps)
