r"""Similarity preserving: samples that look alike to the teacher shall look alike to the student.

Formula:
    \mathcal{L} = \frac{1}{N^2} \lVert G^s - G^t \rVert_F^2
    G_{i \cdot} = \frac{(A A^\top)_{i \cdot}}{\lVert (A A^\top)_{i \cdot} \rVert_2}, \quad A_{i \cdot} =
        \mathrm{vec}(F_i)

Source: Tung & Mori, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, eq. 1-4.
Deviation: a sample whose features are all zero passes no gradient (it has no direction).
Reduction: squared differences of the row-normalised Gram matrices, over N²; several taps add up. The benchmark on
CIFAR-100 weighs it by 3000.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.pairwise import Pairs, gram, related_rows, unit_rows
from kdscale.nn.sides import feature_sides, total

__all__ = ["SimilarityPreserving"]

BIBTEX = """
@inproceedings{tung2019similarity,
  author = {Tung, Frederick and Mori, Greg},
  title = {{Similarity-Preserving Knowledge Distillation}},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2019},
  eprint = {1907.09682},
  archivePrefix = {arXiv}
}
"""


class SimilarityPreserving(Loss):
    """Match how similar the samples of a batch are; widths and sizes of the features are free."""

    class Config(PluginConfig):
        """Options."""

        pairs: Pairs = "global"

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})
    per_sample = False
    relational = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean squared difference of similarities. Raises: ShapeError."""
        values = [
            similarity_gap(*(related_rows("sp", features, self.config.pairs) for features in pair))
            for pair in feature_sides("sp", student, teacher)
        ]
        return total(values)


def similarity_gap(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """Compute ‖G_t - G_s‖² / N² of Gram matrices with rows of length 1."""
    # The rows of the products are normalised, not the features: that would be another function.
    return mse_loss(unit_rows(gram(student)), unit_rows(gram(teacher)))
