"""A picture and its mirror image are answered together: terms compare the mean of both answers with the teacher's.

Edit this file, then, from the folder that holds your package:
    python KDSCALE/launch/check.py mine.mirrored
    strategy: "mine.mirrored:Mirrored", options: {share: 0.5}    in a stage of a config with
    plugins: {path: [.], allow: [mine]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import nn

from kdscale.api import Batch, Outputs, PluginConfig, Strategy, Taught, Term, Weighted
from kdscale.strategies.distill import Distill

__all__ = ["Mirrored"]


class Mirrored(Distill):
    """The usual sum of weighted terms, of an answer of its own.

    A strategy is the one trained module: what trains beside the student is a child of it, made in `__init__`, and is
    not exported. Teachers are no children. It draws by kdscale.draws, of (seed, batch.step), or not at all.
    """

    class Config(PluginConfig):
        """Options: keys of `options`, each with a default; unknown ones are refused."""

        share: float = Field(0.5, ge=0, le=1, description="of the mirror image in the mean")

    def __init__(self, student: nn.Module, passes: Mapping[str, Sequence[Term]], *, share: float) -> None:
        super().__init__(student, passes)
        self.share = share

    @classmethod
    def build(cls, student: nn.Module, passes: Mapping[str, Sequence[Term]], config: Any, stage: Any) -> Strategy:
        """Make it for a stage, of which `stage` knows more (kdscale.nn.stage_parts)."""
        return cls(student, passes, share=config.share)

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Run the student, and weigh the terms of one pass."""
        answer: Outputs = self.student(batch.images)
        mirrored: Outputs = self.student(batch.images.flip(-1))
        logits = (1 - self.share) * answer.logits + self.share * mirrored.logits
        return self.compared(replace(answer, logits=logits), batch, taught, pass_)
