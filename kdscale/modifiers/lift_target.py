r"""A teacher that is wrong is put right before the student listens: the label's class becomes the most probable.

Formula:
    z^t_{n y_n} \leftarrow \max_{k \neq y_n} z^t_{nk} + \delta \quad \text{where } \mathrm{argmax}_k z^t_{nk} \neq y_n

Source: the repaired soft labels of WSKD, the proposal that GSKD (growing students) was drawn from, which leaves the
rule open; `swap` from Wen et al., "Preparing Lessons", arXiv:1911.07471 (probability shift).
Deviation: `logit_lift` puts the label's logit `delta` above the largest other and moves nothing else: the label wins at
every temperature, and the other classes keep their ratios to each other. `swap` moves the old winner among them.
Reduction: none; a sample that the teacher gets right stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor

from kdscale.api import Batch, Modifier, Outputs, PluginConfig
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32
from kdscale.nn.selection import predicted

__all__ = ["LiftTarget"]

BIBTEX = """
@misc{wen2019preparing,
  author = {Wen, Tiancheng and Lai, Shenqi and Qian, Xueming},
  title = {{Preparing Lessons: Improve Knowledge Distillation with Better Supervision}},
  year = {2019},
  eprint = {1911.07471},
  archivePrefix = {arXiv}
}
"""

_OPTION_OF = {"logit_lift": "delta", "set_prob": "probability", "lsr": "smoothing"}


class LiftTarget(Modifier):
    """Repair the teacher's logits of the samples that it gets wrong."""

    class Config(PluginConfig):
        """Options."""

        rule: Literal["logit_lift", "swap", "set_prob", "lsr"] = Field(
            "logit_lift", description="lsr replaces the answer by the label, smoothed"
        )
        delta: float = Field(1.0, ge=0, description="logit_lift: how far above the others; 0 is a tie")
        probability: float = Field(0.9, ge=0.5, lt=1, description="set_prob: of the label, at the loss's temperature")
        smoothing: float = Field(0.1, gt=0, lt=1, description="lsr: probability spread evenly over all classes")

        @model_validator(mode="after")
        def _nothing_is_said_in_vain(self) -> Any:
            for rule, option in _OPTION_OF.items():
                if option in self.model_fields_set and rule != self.rule:
                    raise ValueError(f"{option} is for rule: {rule}, not {self.rule}")
            return self

    config: Config
    reads: ClassVar[Literal["logits", "probabilities", "nothing"]] = "probabilities"
    needs_teacher: ClassVar[bool] = True
    judges_labels: ClassVar[bool] = True

    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        """Repair what the loss sees of the teacher. Raises: ShapeError."""
        if teacher is None:
            raise ShapeError("lift_target: this term has no teacher to repair; name one: {teacher: STAGE}")
        logits, labels = at_least_fp32(teacher.logits), batch.labels[:, None]
        if logits.shape[1] != self.shapes.classes:
            raise ShapeError(
                f"lift_target: the teacher tells {logits.shape[1]} classes apart, the labels {self.shapes.classes}"
            )
        wrong = (predicted(teacher) != batch.labels)[:, None]
        return student, replace(teacher, logits=torch.where(wrong, self._repaired(logits, labels), logits), top=None)

    def _repaired(self, logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B 1"]) -> Float[Tensor, "B C"]:
        """Every row as if its teacher were wrong."""
        config, temperature = self.config, self.shapes.temperature
        others = logits.scatter(1, labels, -torch.inf)
        if config.rule == "logit_lift":
            return logits.scatter(1, labels, others.amax(1, keepdim=True) + config.delta)
        if config.rule == "swap":
            top = others.argmax(1, keepdim=True)
            return logits.scatter(1, top, logits.gather(1, labels)).scatter(1, labels, logits.gather(1, top))
        if config.rule == "set_prob":
            odds = math.log(config.probability / (1 - config.probability))
            return logits.scatter(1, labels, temperature * (odds + (others / temperature).logsumexp(1, keepdim=True)))
        rest = config.smoothing / self.shapes.classes
        spread = torch.full_like(logits, temperature * math.log(rest))
        return spread.scatter(1, labels, temperature * math.log(1 - config.smoothing + rest))
