r"""DIST: the student's probabilities correlate with a stronger teacher's, which asks less than being equal.

Formula:
    \mathcal{L} = T^2 \Big( \lambda_{inter} \Big( 1 - \frac{1}{N} \sum_{n} \rho(q_{n \cdot}, p_{n \cdot}) \Big) +
        \lambda_{intra} \Big( 1 - \frac{1}{C} \sum_{k} \rho(q_{\cdot k}, p_{\cdot k}) \Big) \Big)
    p_n = \mathrm{softmax}(z^t_n / T), \quad q_n = \mathrm{softmax}(z^s_n / T), \quad \rho = \text{Pearson's
        correlation}

Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536, eq. 6-10; temperature 4 and
a weight of 2 on CIFAR-100, temperature 1 on ImageNet.
Deviation: times temperature², as in the authors' code and not in the paper (`scale_t2: false`). A sample or class
whose probabilities are all equal passes no gradient.
Reduction: `inter` averages 1 - correlation over samples, `intra` over classes; their weighted sum.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.pairwise import Pairs, correlations, related_rows
from kdscale.nn.sides import logit_sides, total

__all__ = ["StrongerTeacher"]

BIBTEX = """
@inproceedings{huang2022knowledge,
  author = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  title = {{Knowledge Distillation from A Stronger Teacher}},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2022},
  eprint = {2205.10536},
  archivePrefix = {arXiv}
}
"""


class StrongerTeacher(Loss):
    """Correlate with the teacher's probabilities: each sample's over classes, and each class's over samples."""

    class Config(PluginConfig):
        """Options."""

        temperature: float = Field(4.0, gt=0)
        inter: float = Field(1.0, ge=0, description="weight of the correlation over classes, sample by sample")
        intra: float = Field(1.0, ge=0, description="weight of the correlation over samples, class by class")
        scale_t2: bool = True
        eps: float = Field(
            1e-8, gt=0, description="added to the product of the two lengths that a correlation divides by"
        )
        pairs: Pairs = "global"

        @model_validator(mode="after")
        def _something_weighs(self) -> StrongerTeacher.Config:
            if not self.inter and not self.intra:
                raise ValueError("inter and intra are both 0: nothing is left to compare")
            return self

    config: Config
    reads = "probabilities"
    per_sample = False
    relational = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of both. Raises: ShapeError."""
        config = self.config
        own, taught = ((z / config.temperature).softmax(1) for z in logit_sides("dist", student, teacher))
        parts = [config.inter * correlation_gap(own, taught, config.eps)] if config.inter else []
        if config.intra:
            own, taught = (related_rows("dist", rows, config.pairs).T for rows in (own, taught))
            parts.append(config.intra * correlation_gap(own, taught, config.eps))
        value = total(parts)
        return value * config.temperature**2 if config.scale_t2 else value


def correlation_gap(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"], eps: float = 1e-8
) -> Float[Tensor, ""]:
    """Compute the mean over rows of 1 - Pearson's correlation: 0 where they agree, at most 2."""
    return 1 - correlations(student, teacher, eps).mean()
