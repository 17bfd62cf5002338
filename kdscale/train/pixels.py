"""Figures of a network that gives each pixel a class: from one confusion matrix over all pixels of all ranks.

Intersections and unions are added up over the whole split first and divided once, as benchmarks do; a mean of each
image's or each rank's figure is another number. Pixels that are IGNORED count nowhere, and a class that neither the
labels nor the answers hold is left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from kdscale import ranks
from kdscale.api import IGNORED, Outputs

__all__ = ["PixelFigures", "PixelSums"]


@dataclass(frozen=True)
class PixelFigures:
    """Results over one split, in [0, 1]."""

    rated_by: ClassVar[str] = "miou"
    top1_of: ClassVar[Mapping[str, float]] = {}
    samples: int
    """Images."""
    miou: float
    """Mean over classes of intersection over union."""
    pixel_accuracy: float
    per_class: list[float]
    """Each class's intersection over union; nan where there is none."""

    @property
    def rating(self) -> float:
        """What the best snapshot is chosen by."""
        return self.miou

    def metrics(self, split: str) -> dict[str, float]:
        """Flat metrics under the split's name."""
        return {f"{split}/miou": self.miou, f"{split}/pixel_accuracy": self.pixel_accuracy}

    def results(self) -> dict[str, Any]:
        """What a stage's results hold of them."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}

    @classmethod
    def of(cls, confusion: Int64[Tensor, "C C"], samples: int) -> PixelFigures:
        """Work them out from pixels by (label, answer)."""
        counts = confusion.double()
        shared, united = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        per_class = (shared / united).tolist()  # 0 / 0 is nan: there is no such pixel
        known = [iou for iou in per_class if not math.isnan(iou)]
        accuracy = (shared.sum() / counts.sum().clamp(min=1)).item()
        return cls(samples, sum(known) / max(1, len(known)), accuracy, per_class)


class PixelSums:
    """Counts of pixels by (label, answer), on the device; whole numbers, so their order does not matter."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = classes
        self._pixels = torch.zeros(classes * classes + 1, dtype=torch.int64, device=device)
        """The last one counts what is ignored."""
        self._samples = torch.zeros(1, dtype=torch.int64, device=device)

    def add(self, answered: Outputs, labels: Int64[Tensor, "B H W"], taught: Mapping[str, Tensor]) -> None:
        """Take in one batch."""
        del taught  # teachers' maps of a whole split are too many to keep
        pairs = labels * self._classes + answered.logits.argmax(dim=1)
        pairs = torch.where(labels == IGNORED, self._classes**2, pairs).flatten()
        self._pixels.index_add_(0, pairs, torch.ones_like(pairs))
        self._samples += len(labels)

    def figures(self) -> PixelFigures:
        """Over all ranks; called by all of them."""
        pixels, samples = ranks.sum_(self._pixels.clone()), ranks.sum_(self._samples.clone())
        return PixelFigures.of(pixels[:-1].view(self._classes, self._classes), int(samples))
