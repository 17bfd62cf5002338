r"""Samples that the student can follow count more: each value is divided by a variance that the student predicts.

Formula:
    \ell_n \leftarrow \frac{\ell_n}{\varepsilon + e^{v_n}} + v_n, \quad v_n = \mathrm{clip}(\mathrm{BN}(W f^s_n +
        b), \pm 10)

Source: Zhang et al., "Prime-Aware Adaptive Distillation", arXiv:2008.01458; the head as in torchdistill.
Deviation: the loss behind it is any that has a value a sample; log-variances are held within ±10.
Reduction: none; the values keep their own, and may become negative.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Modifier, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32
from kdscale.nn.sync_bn import needs_two_values
from kdscale.nn.variance import LogVariance, weigh_by_variance

__all__ = ["PrimeAwareWeights"]

BIBTEX = """
@inproceedings{zhang2020primeaware,
  author = {Zhang, Youcai and Lan, Zhonghao and Dai, Yuchen and Zeng, Fangao and Bai, Yan and Chang, Jie and Wei,
    Yichen},
  title = {{Prime-Aware Adaptive Distillation}},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2020},
  eprint = {2008.01458},
  archivePrefix = {arXiv}
}
"""


class PrimeAwareWeights(Modifier):
    """Weigh a term's samples by the certainty that the student reads from its own last tapped feature."""

    class Config(PluginConfig):
        """Options."""

        eps: float = Field(1e-6, ge=0, description="added to the variance")

    config: Config
    needs_features: ClassVar[bool] = True

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        if not shapes.student:
            raise ShapeError("prime_aware: reads a feature of the student: give its term taps: {student: [pooled]}")
        self.head = LogVariance(shapes.student[-1][0], 1)
        self._log_variance: Tensor | None = None

    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        """Predict each sample's variance; what the loss sees stays as it is."""
        feature = at_least_fp32(student.features[-1])
        pooled = feature.flatten(2).mean(dim=2) if feature.dim() > 2 else feature
        needs_two_values("prime_aware", pooled, self.head)
        with torch.autocast(pooled.device.type, enabled=False):
            self._log_variance = self.head(pooled)[:, 0]
        return student, teacher

    def after(self, values: Float[Tensor, "*B"], batch: Batch) -> Float[Tensor, "*B"]:
        """Divide by the variance and add its logarithm. Raises: ShapeError for a loss without a value a sample."""
        log_variance, self._log_variance = self._log_variance, None  # no graph outlives its step
        if values.dim() == 0 or log_variance is None:
            raise ShapeError("prime_aware: weighs samples, but this term has one value a batch; take it off the term")
        return weigh_by_variance(values, log_variance, self.config.eps)
