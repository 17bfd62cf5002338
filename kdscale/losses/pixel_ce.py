"""Cross-entropy with the label of each pixel: the task itself, where pixels have classes.

Source: Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", arXiv:1411.4038.
Reduction: the mean over the labelled pixels of the global batch, which does not depend on how ranks share them;
pixels whose label is IGNORED (255), as padding is, count nowhere. Of no labelled pixel it is 0.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdscale import ranks
from kdscale.api import IGNORED, Batch, Loss, Outputs, PluginConfig
from kdscale.nn.precision import at_least_fp32

__all__ = ["PixelCrossEntropy"]


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
) -> Float[Tensor, "P"]:
    """Each pixel's cross-entropy, 0 where it has no label.

    Pixels are laid in a row first: the kernel for maps has no deterministic form on a GPU.
    """
    rows = at_least_fp32(logits).movedim(1, -1).flatten(0, -2)
    return functional.cross_entropy(
        rows, labels.flatten(), reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )
