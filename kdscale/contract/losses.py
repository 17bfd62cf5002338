"""What every loss promises, kdscale's own and a user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.api import Batch, Loss, Shapes
from kdscale.contract.checks import Broken, Check, Skipped
from kdscale.contract.finite import require_finite
from kdscale.contract.probes import CLASSES, LAYOUTS, SIZE, Probe, Probes, probe, row, rows_of
from kdscale.contract.repeats import require_no_draws

__all__ = ["LOSS_CHECKS", "LossSubject"]

LARGE = 3e4
"""Of logits: exp overflows by far, fp16 still holds them."""


@dataclass(frozen=True)
class LossSubject:
    """A loss with options, and the made-up networks that it is built for."""

    cls: type[Loss]
    file: Path
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    """Of values that are compared."""

    @cached_property
    def features(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the taps that it is shown: the first of a few layouts that it takes.

        Raises:
            Exception: what it raises on the first, where it takes none.
        """
        first: Exception | None = None
        for layout in LAYOUTS:
            try:
                self._built(layout)(*probe(self.dtype, layout))
            except Exception as error:  # noqa: BLE001 - which layouts it takes is the question
                first = first or error
            else:
                return layout
        assert first is not None
        raise first

    def build(self, dtype: torch.dtype | None = None) -> Loss:
        """It, with the initial weights that it always gets here."""
        return self._built(self.features).to(dtype or self.dtype)

    def answers(self, dtype: torch.dtype | None = None, *, logits: float | None = None) -> Probes:
        """Answers that it can be asked about."""
        return probe(dtype or self.dtype, self.features, logits=logits)

    def _built(self, features: Sequence[tuple[int, ...]]) -> Loss:
        shapes = Shapes(classes=CLASSES, student=features, teacher=features, train_rows=100)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.cls(self.cls.Config(**self.options), shapes).to(self.dtype)


def _returns(subject: LossSubject) -> str:
    loss = subject.build()
    if loss.per_sample and loss.relational:
        raise Broken("says per_sample and relational", "a value that belongs to the batch together is per_sample=False")
    value = loss(*subject.answers())
    wanted = (SIZE,) if loss.per_sample else ()
    if not isinstance(value, Tensor) or value.shape != wanted:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Broken(
            f"returns {shape} for B = {SIZE}, and per_sample is {loss.per_sample}",
            "return a value a sample, .mean(1) say; or per_sample = False and one value",
        )
    taps = ", ".join(str(list(shape)) for shape in subject.features) if "features" in loss.needs else ""
    return f"{wanted or '()'}{f' with taps {taps}' if taps else ''}".replace("(6,)", "(B,)")


def _alone(subject: LossSubject) -> None:
    loss = subject.build()
    if not loss.per_sample:
        raise Skipped("its value belongs to the batch")
    if loss.needs_input_grad:
        raise Skipped("a sample is no part of the graph that it can be differentiated by: its own test looks")
    student, teacher, batch = subject.answers()
    loss(student, teacher, batch)  # a stateful loss starts its state
    loss.eval()
    together = loss(student, teacher, batch)
    for i in range(SIZE):
        alone = loss(row(student, i), row(teacher, i), rows_of(batch, i))[0]
        rtol, atol = (1e-7, 1e-7) if alone.dtype == torch.float64 else (1e-4, 1e-5)
        if not torch.isclose(alone, together[i], rtol=rtol, atol=atol):
            raise Broken(
                f"sample {i} has {alone.item():.6g} alone and {together[i].item():.6g} among {SIZE}",
                "reduce over classes and positions; what compares samples has per_sample = False, relational = True",
            )


def _gradients(subject: LossSubject) -> None:
    student, teacher, batch = subject.answers()
    value = subject.build()(student, teacher, batch)
    if not value.requires_grad:
        raise Broken("no gradient reaches the student", "do not detach the student, and use no argmax, item() or numpy")
    value.sum().backward()
    grads = [leaf.grad for leaf in student.leaves if leaf.grad is not None]
    if not grads or not sum(float(grad.abs().sum()) for grad in grads) > 0:
        raise Broken("the student's gradient is zero", "what it answers must change the value")
    if not all(bool(torch.isfinite(grad).all()) for grad in grads):
        raise Broken("the student's gradient is not finite on ordinary answers")
    if any(leaf.grad is not None for leaf in teacher.leaves):
        raise Broken("a gradient reaches the teacher", "use teacher.logits.detach(), teacher.features[0].detach()")


def _needs(subject: LossSubject) -> str:
    loss, (student, teacher, batch) = subject.build(), subject.answers()
    loss(student, teacher, batch)  # a stateful loss starts its state
    value = loss.eval()(student, teacher, batch)
    without = {
        "needs_teacher = False": (loss.needs_teacher, lambda: loss(student, None, batch)),
        'no "features" in needs': (
            "features" in loss.needs,
            lambda: loss(replace(student, features=[]), replace(teacher, features=[]), batch),
        ),
        'no "labels" in needs': (
            "labels" in loss.needs,
            lambda: loss(student, teacher, replace(batch, labels=(batch.labels + 1) % CLASSES)),
        ),
        'no "logits" in needs': (
            "logits" in loss.needs or loss.needs_input_grad,
            lambda: loss(replace(student, logits=-student.logits), replace(teacher, logits=-teacher.logits), batch),
        ),
    }
    for said, (declared, run) in without.items():
        if not declared and not _same(run, value):
            raise Broken(
                f"it says {said}, and its value depends on it", "say in `needs` and `needs_teacher` what is read"
            )
    return ", ".join([*sorted(loss.needs), *(["a teacher"] if loss.needs_teacher else [])])


def _same(run: Callable[[], Tensor], value: Tensor) -> bool:
    try:
        again = run()
    except (TypeError, AttributeError, IndexError, AssertionError):  # what is left out was asked for
        return False
    return bool(torch.allclose(again, value, rtol=1e-7 if value.dtype == torch.float64 else 1e-5, equal_nan=True))


def _half(subject: LossSubject, *, logits: float | None) -> None:
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        student, teacher, batch = subject.answers(dtype, logits=logits)
        run = partial(_in_half, subject, student, teacher, batch)
        # in fp16 a gradient may exceed what the type holds: the loss scale is for that
        leaves = student.leaves if dtype == torch.bfloat16 or logits is None else []
        require_finite(
            run, leaves, subject.file, f"{name} inputs{'' if logits is None else f', logits of {logits:.0e}'}"
        )
        if run().dtype != torch.float32:
            raise Broken(f"{name} inputs: returns {run().dtype}", "widen with at_least_fp32 before the first operation")


def _in_half(subject: LossSubject, student: Probe, teacher: Probe, batch: Batch) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value: Tensor = subject.build(torch.float32)(student, teacher, batch)
    return value


def _zeros(subject: LossSubject) -> None:
    for whose in (("student",), ("teacher",), ("student", "teacher")):
        answers = probe(torch.float32, subject.features, zeros_of=whose)
        run = partial(_plain, subject, answers)
        require_finite(run, answers.student.leaves, subject.file, f"a row of zeros of {' and '.join(whose)}")


def _plain(subject: LossSubject, answers: Probes) -> Tensor:
    value: Tensor = subject.build(torch.float32)(*answers)
    return value


def _repeats(subject: LossSubject) -> None:
    values = []
    for seed in (1, 2):
        loss, answers = subject.build(), subject.answers()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            values.append(loss.eval()(*answers).detach())
    if not torch.equal(*values):
        raise Broken("two runs on the same answers differ", "draws must be a function of the batch's rows and step")


def _draws(subject: LossSubject) -> None:
    loss, answers = subject.build().eval(), subject.answers()
    require_no_draws(lambda: loss(*answers), subject.file, subject.cls.__name__)


LOSS_CHECKS: tuple[Check[LossSubject], ...] = (
    Check("returns (B,), or () where the value is the batch's", _returns, first=True),
    Check("sample i alone has the value that it has in the batch", _alone),
    Check("a gradient reaches the student, and never the teacher", _gradients),
    Check("reads no more than it says it needs", _needs),
    Check("bf16 and fp16 inputs: finite, and computed in fp32", partial(_half, logits=None)),
    Check(f"bf16 and fp16 inputs: finite at logits of {LARGE:.0e}", partial(_half, logits=LARGE)),
    Check("rows of zeros have finite values and gradients", _zeros),
    Check("two runs agree bit for bit", _repeats),
    Check("draws nothing from generators that nobody seeds", _draws),
)
