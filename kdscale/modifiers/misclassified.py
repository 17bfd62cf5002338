r"""Only the samples that the teacher gets wrong count.

Formula:
    \mathcal{L} = \frac{\sum_{n} m_n \ell_n}{\sum_{n} m_n}, \quad m_n = [\mathrm{argmax}_k z^t_{nk} \neq y_n]

Source: the second update of WSKD, the proposal that GSKD (growing students) was drawn from; it has no publication.
Deviation: the teacher is judged on the very view that the student sees.
Reduction: over the misclassified samples of the global batch (`selected`), or over the whole of it (`batch`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from kdscale.api import Batch, Modifier, Outputs, PluginConfig, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.selection import predicted

__all__ = ["Misclassified"]


class Misclassified(Modifier):
    """Pick the samples whose label is not the teacher's most probable class."""

    class Config(PluginConfig):
        """Options."""

        normalise: Literal["selected", "batch"] = Field(
            "selected", description="a mean over picked samples, or over all: few picked then make a small step"
        )

    needs_teacher: ClassVar[bool] = True
    judges_labels: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def __init__(self, config: Config, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.normalise = config.normalise

    def mask(self, teacher: Outputs | None, batch: Batch) -> Bool[Tensor, "B"]:
        """Where the teacher is wrong. Raises: ShapeError without a teacher."""
        if teacher is None:
            raise ShapeError("misclassified: this term has no teacher to judge; name one: {teacher: STAGE}")
        return predicted(teacher) != batch.labels
