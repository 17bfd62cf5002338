r"""Interactive distillation: blocks of a frozen teacher run in the place of the student's, drawn anew each step.

Formula:
    x_{l+1} = S_l(x_l) \text{ with probability } p(\text{step}), \text{ else } T_l(x_l)

Source: Fu et al., "Interactive Knowledge Distillation for Image Classification", arXiv:2007.01476, of which no code
is public. Schedule and final phase also as in Xu et al., "BERT-of-Theseus", EMNLP 2020, arXiv:2002.02925.
Deviation: a reconstruction. Draws are per batch; stem and head are the student's own unless `units` names them;
BatchNorm is measured anew before each evaluation, because in training it saw the teacher's activations too.
Reduction: p_student 1 is `distill`, bit for bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdscale.api import Batch, Losses, PluginConfig, Taught, Term, Weighted
from kdscale.config.schema import TrainConfig
from kdscale.draws import uniform
from kdscale.errors import ConfigError
from kdscale.nn.block_swap import Unit, connectors_of, even_pairs, swapped_in, units_of
from kdscale.nn.network import Network
from kdscale.nn.sides import total
from kdscale.nn.stage_parts import StageParts
from kdscale.optim import milestone_steps
from kdscale.strategies.distill import Distill

__all__ = ["Interactive"]

BIBTEX = """
@misc{fu2020interactive,
  author = {Fu, Shipeng and Li, Zhen and Xu, Jun and Cheng, Ming-Ming and Liu, Zitao and Yang, Xiaomin},
  title = {{Interactive Knowledge Distillation for Image Classification}},
  year = {2020},
  eprint = {2007.01476},
  archivePrefix = {arXiv}
}
@inproceedings{xu2020bert,
  author = {Xu, Canwen and Zhou, Wangchunshu and Ge, Tao and Wei, Furu and Zhou, Ming},
  title = {{BERT-of-Theseus: Compressing BERT by Progressive Module Replacing}},
  booktitle = {Conference on Empirical Methods in Natural Language Processing (EMNLP)},
  year = {2020},
  eprint = {2002.02925},
  archivePrefix = {arXiv}
}
"""


class Interactive(Distill):
    """`Distill`, whose student runs some of its teacher's blocks in training.

    A student's block that is not drawn does not run: no gradient, momentum, decay or BatchNorm statistics. Gradients
    go through the teacher's blocks to what lies before. Evaluation and export know the student alone.

    Args:
        student: a `Network`.
        passes: terms by pass, as for `Distill`; all passes of a step share its draws.
        config: how blocks pair and how often the student's own run.
        stage: its teachers, among them the one whose blocks run; it stays the caller's.

    Raises:
        ConfigError, ShapeError, TapError: blocks or options do not fit.
    """

    revision = 2
    most_zero_stage = 0

    class Config(PluginConfig):
        """Options."""

        teacher: str | None = Field(None, description="whose blocks run; default the only one")
        units: dict[str, list[str]] = Field(
            {}, description="student's block to the teacher's that run in its place; default an even partition"
        )
        schedule: Literal["constant", "linear", "review"] = Field(
            "constant", description="of p_student: as it is; in a line to 1; that line again after each milestone"
        )
        p_student: float | None = Field(
            None,
            ge=0,
            le=1,
            description="probability at first that a student's own block runs; 0.5, or 0.1 if it rises",
        )
        period_epochs: float | None = Field(None, gt=0, description="review: epochs of a line, instead of milestones")
        final_student_phase: float = Field(0.0, ge=0, description="epochs at the end with the student alone")
        recalibrate_batches: int = Field(100, ge=0, description="training batches that measure BatchNorm anew")

    def __init__(
        self, student: Network, passes: Mapping[str, Sequence[Term]], config: Config, stage: StageParts
    ) -> None:
        super().__init__(student, passes)
        if stage.train.compile:
            raise ConfigError("train.compile: blocks come and go, each mixture a graph of its own; set it to false")
        teacher = _teacher(config, stage)
        # plain objects: what is no child is neither trained, nor sharded, nor saved
        self._teacher = (teacher.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last),)  # type: ignore[call-overload]
        pairs = config.units or even_pairs(student.model, teacher.model)
        connectors = connectors_of(student, teacher, pairs, stage.seed)
        self.connectors = nn.ModuleDict({p.replace(".", "_"): each for p, each in connectors.items() if len(each)})
        self._units = tuple(units_of(student, teacher, pairs, connectors))
        self.p_student = student_schedule(config, stage.train, stage.total_steps)
        self._seed, self._batches = stage.seed, config.recalibrate_batches
        self.figures = ("p_student", *(f"student_ran/{unit.path}" for unit in self._units))

    @classmethod
    def build(
        cls, student: nn.Module, passes: Mapping[str, Sequence[Term]], config: Any, stage: Any
    ) -> Interactive:  # fmt: skip
        return cls(student, passes, config, stage)  # type: ignore[arg-type]

    def replaced(self, step: int) -> list[Unit]:
        """Units in whose place the teacher's blocks run at a step: the same on every rank, before or after a resume."""
        share = self.p_student(step)
        return [unit for unit in self._units if uniform("iakd", self._seed, step, unit.path) >= share]

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run the mixture of this step and weigh the terms of one pass."""
        losses = super().forward(batch, taught, pass_)
        away = {unit.path for unit in self.replaced(batch.step)}
        values = [self.p_student(batch.step), *(float(unit.path not in away) for unit in self._units)]
        # new_full, unlike a copy from the host, does not wait for the device
        return replace(
            losses, figures={n: losses.total.new_full((), v) for n, v in zip(self.figures, values, strict=True)}
        )

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        return self._mixed(self.replaced(batch.step), batch, taught, pass_)

    def rehearse(self, batch: Batch, taught: Taught, pass_: str) -> list[Tensor]:
        """The loss of the student alone and that of all the teacher's blocks: together they reach what ever trains."""
        ends = [self._mixed(away, batch, taught, pass_) for away in ((), self._units)]
        return [total([part.weight * part.value for part in parts]) for parts in ends]

    def recalibration(self, step: int) -> int:
        return self._batches if step and self.p_student(step - 1) < 1 else 0

    def _mixed(self, away: Sequence[Unit], batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        model = self.student.model
        assert isinstance(model, nn.Module)
        with swapped_in(model, away):
            return super().weighted(batch, taught, pass_)

    def _apply(self, fn: Any, recurse: bool = True) -> Interactive:  # noqa: FBT001, FBT002
        """Take the teacher along to another device."""
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def student_schedule(config: Interactive.Config, train: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """The probability at each step that a student's own block runs.

    Raises:
        ConfigError: options contradict one another or the stage's training.
    """
    _check_schedule(config, train)
    per_epoch = max(1, total_steps // max(1, train.epochs))
    end = total_steps - round(config.final_student_phase * per_epoch)
    begins = [0]
    if config.schedule == "review" and config.period_epochs:
        begins = list(range(0, end, max(1, round(config.period_epochs * per_epoch)))) or begins
    elif config.schedule == "review":
        marks = (math.ceil(mark) for mark in milestone_steps(train, total_steps, per_epoch))
        begins = sorted({0, *(mark for mark in marks if mark < end)})
    first = config.p_student if config.p_student is not None else 0.5 if config.schedule == "constant" else 0.1

    def share(step: int) -> float:
        if step >= end:
            return 1.0
        number = bisect_right(begins, step)
        begin, until = begins[number - 1], [*begins, end][number]
        return first if config.schedule == "constant" else first + (1 - first) * (step - begin) / (until - begin)

    return share


def _check_schedule(config: Interactive.Config, train: TrainConfig) -> None:
    if config.period_epochs is not None and config.schedule != "review":
        raise ConfigError(f"options.period_epochs: schedule {config.schedule} has no period; only review has")
    if config.schedule == "review" and config.period_epochs is None and train.schedule != "multistep":
        raise ConfigError(
            f"options.schedule: review starts anew at the milestones of the learning rate, and train.schedule "
            f"{train.schedule} has none; set options.period_epochs, or train.schedule: multistep"
        )
    if train.epochs and config.final_student_phase >= train.epochs:
        raise ConfigError(
            f"options.final_student_phase: {config.final_student_phase:g} of {train.epochs} epochs leaves no other"
        )


def _teacher(config: Interactive.Config, stage: StageParts) -> Network:
    """The one network whose blocks run."""
    have = ", ".join(stage.teachers) or "none"
    if config.teacher is not None and config.teacher in stage.teachers:
        return stage.teachers[config.teacher]
    if config.teacher is not None:
        raise ConfigError(
            f"options.teacher: {config.teacher} is no network that teaches this stage (there are: {have})"
        )
    if len(stage.teachers) != 1:
        raise ConfigError(f"options.teacher: name the teacher whose blocks run (this stage has: {have})")
    return next(iter(stage.teachers.values()))
