"""Head distillation: a small head with a narrow wire learns to give what a teacher's first modules give.

Source: Matsubara, Baidya, Callegaro, Levorato, Singh, "Distilled Split Deep Neural Networks for Edge-Assisted Real-Time
Systems", arXiv:1910.00643; Matsubara et al., "Head Network Distillation", IEEE Access 2020.
Deviation: what is selected and exported sends bytes (`nn.wire`); the paper measures with numbers and rounds afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from kdscale.api import Batch, Losses, Outputs, Taught, Term
from kdscale.errors import ConfigError
from kdscale.nn.split_head import SplitHead, split_head_of
from kdscale.strategies.distill import Distill

__all__ = ["HeadDistillation"]

BIBTEX = """
@inproceedings{matsubara2019distilled,
  author = {Matsubara, Yoshitomo and Baidya, Sabur and Callegaro, Davide and Levorato, Marco and Singh, Sameer},
  title = {{Distilled Split Deep Neural Networks for Edge-Assisted Real-Time Systems}},
  booktitle = {Workshop on Hot Topics in Video Analytics and Intelligent Edges (HotEdgeVideo)},
  year = {2019},
  eprint = {1910.00643},
  archivePrefix = {arXiv}
}
@article{matsubara2020head,
  author = {Matsubara, Yoshitomo and Callegaro, Davide and Baidya, Sabur and Levorato, Marco and Singh, Sameer},
  title = {{Head Network Distillation: Splitting Distilled Deep Neural Networks for Resource-Constrained Edge
    Computing Systems}},
  journal = {IEEE Access},
  year = {2020}
}
"""


class HeadDistillation(Distill):
    """`Distill`, of whose student the split head alone trains; what follows it stays as `init_from` brought it.

    Terms may tap anything behind the head, too: gradients go through what is frozen. Evaluation is with bytes on the
    wire; beside it, as `top1_of/float_wire`, the accuracy with the numbers that they stand for.

    Raises:
        ConfigError: the student has no split head.
    """

    def __init__(
        self, student: nn.Module, passes: Mapping[str, Sequence[Term]], *, fixed_bn: Sequence[str] = ()
    ) -> None:
        super().__init__(student, passes, fixed_bn=fixed_bn)
        found = split_head_of(student)
        if found is None:
            raise ConfigError(
                "student.split_head: strategy split_head trains one; set {split_at: MODULE, channels: NUMBER}"
            )
        self._head = (found[1],)  # no child of its own: the student has it
        own = {id(parameter) for parameter in found[1].parameters()}
        for parameter in student.parameters():
            parameter.requires_grad_(id(parameter) in own)
        self.figures = (*self.figures, "wire/low", "wire/high")

    @property
    def head(self) -> SplitHead:
        """What trains."""
        return self._head[0]

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        losses = super().forward(batch, taught, pass_)
        wire = self.head.wire
        ends = {"wire/low": wire.low.clone(), "wire/high": wire.high.clone()} if pass_ == self.passes[0] else {}
        return replace(losses, figures={**losses.figures, **ends})

    def evaluated(self) -> nn.Module:
        # not in `self.beside`: what is evaluated besides has no weights of its own, whose buffers would differ by rank
        return _BothWires(self.student, self.head)


class _BothWires(nn.Module):
    """A student that also tells what it would answer without rounding to bytes."""

    beside = ("float_wire",)

    def __init__(self, student: nn.Module, head: SplitHead) -> None:
        super().__init__()
        self.student, self.head = student, head
        self.training = student.training

    def forward(self, images: Tensor) -> Outputs:
        answered: Outputs = self.student(images)
        with self.head.wire.uncoded():
            exact: Outputs = self.student(images)
        return replace(answered, beside={"float_wire": exact.logits})
