r"""Logit regression: the student learns the teacher's logits themselves, by squared differences.

Formula:
    \mathcal{L} = \frac{1}{N C} \sum_{n} \lVert z^s_n - z^t_n \rVert_2^2

Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184, eq. 1.
Deviation: the mean over classes by default, so that one weight serves any number of them; the paper's sum, halved,
is `reduction: paper` (C / 2 times as large). The paper also standardises each logit over the training set in some
runs, which is not done here; `center` takes each sample's mean from its logits, as no softmax sees it.
Reduction: mean over classes, mean over samples.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Loss, Outputs, PluginConfig
from kdscale.nn.sides import logit_sides
from kdscale.nn.squares import mean_squares, sum_squares

__all__ = ["LogitRegression"]

BIBTEX = """
@inproceedings{ba2014do,
  author = {Ba, Jimmy and Caruana, Rich},
  title = {{Do Deep Nets Really Need to be Deep?}},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2014},
  eprint = {1312.6184},
  archivePrefix = {arXiv}
}
"""


class LogitRegression(Loss):
    """Match the teacher's logits, before any softmax."""

    class Config(PluginConfig):
        """Options."""

        reduction: Literal["mean", "paper"] = Field("mean", description="over classes: the mean, or half the sum")
        center: bool = Field(False, description="compare logits less their mean over classes, sample by sample")

    config: Config
    revision = 2

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return each sample's squared distance, in squared logits. Raises: ShapeError."""
        ours, theirs = logit_sides("logits", student, teacher)
        if self.config.center:
            ours, theirs = (logits - logits.mean(dim=1, keepdim=True) for logits in (ours, theirs))
        return mean_squares(ours, theirs) if self.config.reduction == "mean" else sum_squares(ours, theirs) / 2
