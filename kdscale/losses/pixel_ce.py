r"""Cross-entropy with the label of each pixel: the task itself, where pixels have classes.

Formula:
    \mathcal{L} = -\frac{1}{|V|} \sum_{(n,i) \in V} \log \mathrm{softmax}(z^s_{n \cdot i})_{y_{ni}}, \quad V =
        \text{the pixels that have a label}

Source: Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", arXiv:1411.4038.
Reduction: the mean over the labelled pixels of the global batch, which does not depend on how ranks share them;
pixels whose label is IGNORED (255), as padding is, count nowhere. Of no labelled pixel it is 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdscale import ranks
from kdscale.api import IGNORED, Batch, Loss, Outputs, PluginConfig
from kdscale.nn.precision import at_least_fp32

__all__ = ["PixelCrossEntropy"]

BIBTEX = """
@inproceedings{long2015fully,
  author = {Long, Jonathan and Shelhamer, Evan and Darrell, Trevor},
  title = {{Fully Convolutional Networks for Semantic Segmentation}},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2015},
  eprint = {1411.4038},
  archivePrefix = {arXiv}
}
"""


class PixelCrossEntropy(Loss):
    """Match the labels of pixels, over all that have one."""

    class Config(PluginConfig):
        """Options."""

        label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread evenly over all classes")

    config: Config
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"logits", "labels"})
    needs_teacher: ClassVar[bool] = False
    per_sample: ClassVar[bool] = False
    dense: ClassVar[bool] = True

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Tensor, ""]:
        """Return this rank's part, in nats a pixel: its mean over ranks is that of all labelled pixels."""
        values = pixel_cross_entropy(student.logits, batch.labels, self.config.label_smoothing)
        labelled = ranks.sum_((batch.labels != IGNORED).sum()).clamp(min=1)
        return values.sum() * ranks.world() / labelled


def pixel_cross_entropy(
    logits: Float[Tensor, "B C *pixels"], labels: Int64[Tensor, "B *pixels"], smoothing: float
) -> Float[Tensor, "B *pixels"]:
    """Each pixel's cross-entropy, 0 where it has no label.

    By a softmax in the map's own layout: torch's cross-entropy has no deterministic form for maps on a GPU, and one of
    pixels laid in a row takes 6 times as long on a CPU where classes are few.
    """
    labelled = labels != IGNORED
    log_p = functional.log_softmax(at_least_fp32(logits), dim=1)
    values = -log_p.gather(1, torch.where(labelled, labels, 0)[:, None]).squeeze(1)
    if smoothing:
        values = (1 - smoothing) * values - smoothing * log_p.mean(dim=1)
    return torch.where(labelled, values, 0)
