"""A teacher that is too sure of itself: its logits are held near their mean before the student listens.

Edit this file, then, from the folder that holds your package:
    python KDSCALE/launch/check.py mine.modest
    losses: [{name: kd, modifiers: [{name: "mine.modest:Modest", limit: 5}]}]    in a config with
    plugins: {path: [.], allow: [mine]}
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from kdscale.api import Batch, Modifier, Outputs, PluginConfig
from kdscale.nn.precision import at_least_fp32

__all__ = ["Modest"]


class Modest(Modifier):
    """Clip the teacher's logits to `limit` around the mean of each row."""

    class Config(PluginConfig):
        """Options: keys beside `name`, each with a default; unknown ones are refused."""

        limit: float = Field(5.0, gt=0, description="largest distance of a logit from its row's mean")

    config: Config
    reads = "logits"  # of the teacher: a cache that keeps a few classes alone is refused
    needs_teacher = True
    judges_labels = False  # True: it reads batch.labels, and is refused where views are mixed

    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        """Change what the loss sees. `after(values, batch)` weighs its values (B,); `mask` picks samples."""
        assert teacher is not None
        logits = at_least_fp32(teacher.logits)
        mean = logits.mean(dim=1, keepdim=True)
        return student, replace(teacher, logits=mean + (logits - mean).clamp(-self.config.limit, self.config.limit))
