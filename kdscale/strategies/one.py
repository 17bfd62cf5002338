r"""On-the-fly native ensemble: branches on one trunk learn from the labels and from their own gated ensemble.

Formula:
    \mathcal{L} = \lambda \Big( \sum_{m=1}^{M} \mathcal{L}_{terms}(z^m) + \mathcal{L}_{terms}(z^e) + r
        \sum_{m=1}^{M} \frac{T^2}{N} \sum_{n} \mathrm{KL}(\mathrm{softmax}(z^e_n / T) \,\Vert\,
        \mathrm{softmax}(z^m_n / T)) \Big)
    z^e = \sum_{m} g_m z^m, \quad r = e^{-5 (1 - t)^2}, \quad t = \text{share of the ramp that is over}

Source: Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv:1806.04606,
equations 3 to 8; the gate's layers, the ramp-up and the detached target as in the authors' code.
Deviation: the target has no 1e-7 added. Branch 0, and no other, is the student: an ordinary network that is exported
and loads anywhere. With `student.branches` it is the ensemble: a network that answers with all of them. Where a stage
has more terms than cross-entropy, each is taken of every branch and the ensemble.
Reduction: each branch and the ensemble by the term's own; the distillation is summed over branches, mean over samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from kdscale import plugins
from kdscale.api import Batch, Losses, Outputs, PluginConfig, Shapes, Strategy, Taught, Term, Weighted
from kdscale.errors import ConfigError
from kdscale.nn.branches import Branches, branch_out, branches_of
from kdscale.nn.network import Network
from kdscale.nn.sides import total
from kdscale.nn.stage_parts import StageParts
from kdscale.strategies.distill import Distill

__all__ = ["OnTheFlyEnsemble"]

BIBTEX = """
@inproceedings{lan2018knowledge,
  author = {Lan, Xu and Zhu, Xiatian and Gong, Shaogang},
  title = {{Knowledge Distillation by On-the-Fly Native Ensemble}},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2018},
  eprint = {1806.04606},
  archivePrefix = {arXiv}
}
"""

BRANCHES = 3
DISTILLATION = "distillation"
"""Name of the term between the ensemble and its branches."""


class OnTheFlyEnsemble(Distill):
    """Trains a network with further branches behind a shared trunk; their gated mean teaches all of them."""

    class Config(PluginConfig):
        """Options."""

        branches: int | None = Field(
            None, ge=1, le=16, description="the student's own among them; default 3, or those of student.branches"
        )
        split_at: str | None = Field(None, description="tap or module that is shared last; default: last stage but one")
        temperature: float = Field(3.0, gt=0)
        ramp: float = Field(
            0.27, ge=0, le=1, description="share of the steps over which the distillation rises; 0: none"
        )
        loss_scale: float = Field(1.0, gt=0, description="factor of all terms; 0.5 with one branch is the terms alone")

    def __init__(
        self, student: Network, passes: Mapping[str, Sequence[Term]], config: Config, stage: StageParts
    ) -> None:
        super().__init__(student, passes)
        _refuse(passes)
        self.config = config
        self._rise = config.ramp * stage.total_steps
        inside = branches_of(student.model)
        if inside is None:
            count, at = config.branches or BRANCHES, config.split_at
            self.further = branch_out(student, count, at, stage.fresh, size=stage.size, seed=stage.seed, answers=False)
        elif config.branches or config.split_at:
            raise ConfigError(
                "options: student.branches says how many branches there are, and where; leave it out here"
            )
        self._branches = (inside or self.further,)  # no child of its own: the student may have it
        kd = plugins.load("losses", "kd")
        self.distillation = kd(kd.Config(temperature=config.temperature), Shapes(classes=0))
        parts = [f"branch{i}" for i in range(1 + len(self.branches.others))]
        self.beside = (*parts, "ensemble")
        self.figures = (DISTILLATION, "gate/entropy", *(f"gate/{part}" for part in parts))

    @property
    def branches(self) -> Branches:
        """The student's own, or those that it does without once it has learnt."""
        return self._branches[0]

    @classmethod
    def build(cls, student: Any, passes: Mapping[str, Sequence[Term]], config: Any, stage: StageParts) -> Strategy:
        """Give a student its further branches. Raises: ConfigError, ShapeError, TapError."""
        return cls(student, passes, config, stage)

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run the trunk once and every branch, and add up their terms."""
        answered = self.answered(batch.images)
        parts = self._parts(answered, batch, taught, pass_)
        terms = {part.id: part.value.detach() for part in parts}
        figures = {DISTILLATION: terms.pop(DISTILLATION), **_gate_figures(answered.log_gate.detach())}
        return Losses(total([part.weight * part.value for part in parts]), terms, figures)

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Each term, summed over branches and ensemble, and the distillation, with their weights at this step."""
        return self._parts(self.answered(batch.images), batch, taught, pass_)

    def evaluated(self) -> nn.Module:
        """The student, with the other branches and the ensemble beside it."""
        return _Whole(self)

    def answered(self, images: Tensor) -> Answers:
        """The student's answer, and beside it that of each branch and of the ensemble. Raises: ShapeError."""
        assert isinstance(self.student, Network)
        with self.branches.asked() as answers:
            student: Outputs = self.student(images)
            gated = answers()
        logits = [self.student.mapped(one) for one in (*gated.logits, gated.ensemble)]
        beside = dict(zip(self.beside, logits, strict=True))
        return Answers(student.logits, student.features, student.pixels, beside=beside, log_gate=gated.log_gate)

    def ramp(self, step: int) -> float:
        """Weight of the distillation: exp(-5 (1 - t)²) until t, the share of the ramp that is over, is 1."""
        done = min(1.0, step / self._rise) if self._rise else 1.0
        return math.exp(-5.0 * (1.0 - done) ** 2)

    def _parts(self, answered: Answers, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        *branches, ensemble = (Outputs(logits) for logits in answered.beside.values())
        each = [self.compared(one, batch, taught, pass_) for one in (*branches, ensemble)]
        scale = self.config.loss_scale
        terms = [
            Weighted(t[0].id, scale * t[0].weight, total([one.value for one in t])) for t in zip(*each, strict=True)
        ]
        with torch.autocast(batch.images.device.type, enabled=False):
            target = Outputs(ensemble.logits.detach())
            apart = total([self.distillation(branch, target, batch).mean() for branch in branches])
        return [*terms, Weighted(DISTILLATION, scale * self.ramp(batch.step), apart)]


@dataclass(frozen=True, kw_only=True)
class Answers(Outputs):
    """What the branches answer, and how the gate weighs them."""

    log_gate: Float[Tensor, "B M"]


class _Whole(nn.Module):
    """The strategy as a network from images to answers, with all its branches."""

    def __init__(self, strategy: OnTheFlyEnsemble) -> None:
        super().__init__()
        self.strategy, self.beside = strategy, strategy.beside
        self.training = strategy.training

    def forward(self, images: Tensor) -> Answers:
        return self.strategy.answered(images)


def _refuse(passes: Mapping[str, Sequence[Term]]) -> None:
    """Terms that cannot be taken of several answers to one batch."""
    if list(passes) != ["main"]:
        raise ConfigError("passes: strategy one makes one pass over a batch; give its terms as losses")
    for term in passes["main"]:
        if term.student_taps or term.loss.needs_input_grad:
            raise ConfigError(f"losses.{term.id}: strategy one has a term of each branch's logits, not of features")
        if term.loss.stateful:
            raise ConfigError(f"losses.{term.id}: its memory is of one answer a step, and strategy one has several")
        if term.id == DISTILLATION:
            raise ConfigError(f"losses.{term.id}: strategy one has a term of this id; call yours something else")


def _gate_figures(log_gate: Float[Tensor, "B M"]) -> dict[str, Tensor]:
    """Mean weight of each branch, and mean entropy of the weights in nats."""
    weights = log_gate.exp()
    found = {"gate/entropy": -(weights * log_gate).sum(1).mean()}
    return found | {f"gate/branch{i}": mean for i, mean in enumerate(weights.mean(0))}
