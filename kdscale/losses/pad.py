r"""Prime-aware adaptive distillation: samples that the student can follow count more than those it cannot.

Formula:
    \mathcal{L} = \frac{1}{N D} \sum_{n} \sum_{d} \Big( \frac{(f^t_{nd} - r(f^s_n)_d)^2}{\varepsilon + e^{v_{nd}}}
        + v_{nd} \Big)
    v_n = \mathrm{clip}(\mathrm{BN}(W f^s_n + b), \pm 10)

Source: Zhang et al., "Prime-Aware Adaptive Distillation", arXiv:2008.01458; the head, its variance for each
dimension and `eps` as in torchdistill. `variance: sample` is the literal weight of a sample; `none` the plain
squared error, for the stage before.
Deviation: log-variances are held within ±10; where widths differ, a linear layer brings the student's to the
teacher's. The modifier prime_aware weighs the samples of other losses likewise.
Reduction: mean (or sum) over dimensions, sum over taps. The value may be negative.
Figure: `weight`, the mean 1 / (eps + variance) by which errors count: where it runs away, so does the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from kdscale.api import Batch, Loss, Outputs, PluginConfig, Shapes
from kdscale.nn.measures import Measures
from kdscale.nn.sides import map_sides, paired_shapes, pooled, total
from kdscale.nn.sync_bn import needs_two_values
from kdscale.nn.variance import LogVariance, weigh_by_variance

__all__ = ["PrimeAware"]

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


class PrimeAware(Loss, Measures):
    """Match pooled features, weighed by a variance that the student predicts; maps are averaged over positions."""

    class Config(PluginConfig):
        """Options."""

        variance: Literal["dimension", "sample", "none"] = "dimension"
        reduction: Literal["mean", "sum"] = Field("mean", description="over the dimensions of a feature")
        eps: float = Field(1e-6, ge=0, description="added to the variance")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"features"})

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.projections, self.heads = nn.ModuleList(), nn.ModuleList()
        for (own, *_), (theirs, *_) in paired_shapes("pad", shapes.student, shapes.teacher):
            self.projections.append(nn.Identity() if own == theirs else nn.Linear(own, theirs))
            if config.variance != "none":
                self.heads.append(LogVariance(own, theirs if config.variance == "dimension" else 1))
                self.figures = ("weight",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, "B"]:
        """Return the weighed error of each sample. Raises: ShapeError."""
        pairs = [(pooled(s), pooled(t)) for s, t in map_sides("pad", student, teacher)]
        with torch.autocast(student.logits.device.type, enabled=False):
            variances = [self._log_variance(head, s) for head, (s, _) in zip(self.heads, pairs, strict=False)]
            values = [self._pair(i, s, t, variances) for i, (s, t) in enumerate(pairs)]
            if variances:
                weights = [1 / (self.config.eps + each.detach().exp()) for each in variances]
                self.measured = {"weight": torch.stack([weight.mean() for weight in weights]).mean()}
        return total(values)

    def _log_variance(self, head: nn.Module, own: Tensor) -> Tensor:
        needs_two_values("pad", own, head)
        predicted: Tensor = head(own)
        return predicted

    def _pair(self, i: int, own: Tensor, theirs: Tensor, log_variances: Sequence[Tensor]) -> Tensor:
        error = (theirs - self.projections[i](own)).square()
        if self.config.variance == "sample":
            error = self._reduced(error)[:, None]
        if log_variances:
            error = weigh_by_variance(error, log_variances[i], self.config.eps)
        return self._reduced(error)

    def _reduced(self, error: Tensor) -> Tensor:
        return error.mean(dim=1) if self.config.reduction == "mean" else error.sum(dim=1)
