r"""Standardised logits: the student matches the teacher's relations between classes, not the range of its logits.

Formula:
    z_n \leftarrow \frac{z_n - \mathrm{mean}(z_n)}{\mathrm{std}(z_n) + \varepsilon} \quad \text{on both sides}

Source: Sun et al., "Logit Standardization in Knowledge Distillation", arXiv:2403.01427.
Deviation: the standard deviation over C - 1, as in the authors' code; `std: population` takes the paper's C.
Reduction: none; the loss behind it keeps its own, and its `temperature` is the paper's base temperature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Modifier, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32

__all__ = ["ZScore"]

BIBTEX = """
@inproceedings{sun2024logit,
  author = {Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun},
  title = {{Logit Standardization in Knowledge Distillation}},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2024},
  eprint = {2403.01427},
  archivePrefix = {arXiv}
}
"""


class ZScore(Modifier):
    """Standardise every row of logits, the student's and the teacher's, before any loss on logits."""

    class Config(PluginConfig):
        """Options."""

        std: Literal["sample", "population"] = Field("sample", description="divides by C - 1 or by C")
        eps: float = Field(1e-7, gt=0, description="added to the standard deviation")

    config: Config
    reads: ClassVar[Literal["logits", "probabilities", "nothing"]] = "logits"

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        if shapes.classes < 2:
            raise ShapeError(f"zscore: {shapes.classes} class has no spread to divide by; it needs two or more")

    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        """Standardise the logits of both sides; features stay as they are."""
        return self._standardised(student), None if teacher is None else self._standardised(teacher)

    def _standardised(self, outputs: Outputs) -> Outputs:
        correction = 1 if self.config.std == "sample" else 0
        return replace(outputs, logits=standardise(outputs.logits, correction, self.config.eps))


def standardise(logits: Float[Tensor, "B C"], correction: int = 1, eps: float = 1e-7) -> Float[Tensor, "B C"]:
    """Compute (z - mean) / (std + eps) of each row, std over C - correction; a constant row becomes zeros."""
    z = at_least_fp32(logits)
    return (z - z.mean(dim=1, keepdim=True)) / (z.std(dim=1, correction=correction, keepdim=True) + eps)
