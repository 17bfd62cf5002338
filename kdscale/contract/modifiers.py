"""What every modifier promises, kdscale's own and a user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.api import Batch, Modifier, Outputs, Shapes
from kdscale.contract.checks import Broken, Check, Skipped
from kdscale.contract.finite import require_finite
from kdscale.contract.probes import CLASSES, LAYOUTS, SIZE, Probe, Probes, probe, row, rows_of
from kdscale.contract.repeats import require_no_draws

__all__ = ["MODIFIER_CHECKS", "ModifierSubject"]

LARGE = 1e4
"""Of logits; their squares, which a loss may take behind it, stay far from the end of fp32."""


@dataclass(frozen=True)
class ModifierSubject:
    """A modifier with options."""

    cls: type[Modifier]
    file: Path
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Modifier:
        """It, with the initial weights that it always gets here."""
        shapes = Shapes(CLASSES, LAYOUTS[0], LAYOUTS[0], train_rows=100)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.cls(self.cls.Config(**self.options), shapes)


def _squares(student: Outputs, teacher: Outputs | None) -> Tensor:
    """Stands for a loss behind it, (B,)."""
    ours = student.logits.float()
    theirs = torch.zeros_like(ours) if teacher is None else teacher.logits.detach().float()
    return (ours - theirs).square().mean(1)


def _through(modifier: Modifier, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
    """A term's values (B,) as they come out of it."""
    return modifier.after(_squares(*modifier.before(student, teacher, batch)), batch)


def _shapes(subject: ModifierSubject) -> str:
    """What it changes; the shapes stay."""
    changed = [what for logits in (None, LARGE) for what in _changed(subject, probe(torch.float32, logits=logits))]
    changed += ["which samples count"] if subject.cls.selects else []
    return f"changes {', '.join(dict.fromkeys(changed)) or 'nothing on these batches'}"


def _changed(subject: ModifierSubject, answers: Probes) -> list[str]:
    modifier, (student, teacher, batch) = subject.build(), answers
    ours, theirs = modifier.before(student, teacher, batch)
    if not isinstance(ours, Outputs) or not isinstance(theirs, Outputs):
        raise Broken("before() gives no pair of Outputs", "return student, teacher; dataclasses.replace changes one")
    values = torch.arange(1.0, SIZE + 1)
    after = modifier.after(values, batch)
    pairs = [
        ("the student's logits", student.logits, ours.logits), ("the teacher's logits", teacher.logits, theirs.logits),
        *(("the student's features", a, b) for a, b in zip(student.features, ours.features, strict=True)),
        *(("the teacher's features", a, b) for a, b in zip(teacher.features, theirs.features, strict=True)),
        ("the values", values, after),
    ]  # fmt: skip
    for what, given, got in pairs:
        if given.shape != got.shape:
            raise Broken(f"{what}: {tuple(given.shape)} in, {tuple(got.shape)} out", "keep each tensor's shape")
    return [what for what, given, got in pairs if not torch.equal(given.detach(), got.detach())]


def _mask(subject: ModifierSubject) -> str:
    modifier, (_, teacher, batch) = subject.build(), probe(torch.float32)
    if not modifier.selects:
        if type(modifier).mask is not Modifier.mask:
            raise Broken("has a mask(), which is not asked: selects is False", "set selects = True")
        raise Skipped("it picks no samples (selects is False)")
    mask = modifier.mask(teacher, batch)
    if mask.dtype != torch.bool or mask.shape != (SIZE,):
        raise Broken(f"mask() gives {mask.dtype} {tuple(mask.shape)}", "return a bool a sample, (B,)")
    return f"{int(mask.sum())} of {SIZE} here"


def _declares(subject: ModifierSubject) -> None:
    modifier, (student, teacher, batch) = subject.build(), probe(torch.float32)
    values = _through(modifier, student, teacher, batch)
    if not modifier.needs_teacher:
        _through(modifier, student, None, batch)
    if not modifier.needs_features:
        bare = _through(modifier, replace(student, features=[]), replace(teacher, features=[]), batch)
        _require_same(values, bare, "needs_features")
    if not modifier.judges_labels:
        other = replace(batch, labels=(batch.labels + 1) % CLASSES)
        _require_same(values, _through(modifier, student, teacher, other), "judges_labels")


def _require_same(values: Tensor, others: Tensor, flag: str) -> None:
    if not torch.allclose(values, others):
        raise Broken(f"it says {flag} = False, and its result depends on them", f"set {flag} = True")


def _gradients(subject: ModifierSubject) -> None:
    student, teacher, batch = probe(torch.float32)
    values = _through(subject.build(), student, teacher, batch)
    if not values.requires_grad:
        raise Broken("no gradient reaches the student behind it", "do not detach what the student answers")
    values.sum().backward()  # type: ignore[no-untyped-call]
    if not float(student.leaves[0].grad.abs().sum() if student.leaves[0].grad is not None else 0) > 0:
        raise Broken("the gradient of the student's logits is zero behind it")
    if any(leaf.grad is not None for leaf in teacher.leaves):
        raise Broken("a gradient reaches the teacher", "detach what is read of the teacher")


def _alone(subject: ModifierSubject) -> None:
    modifier, (student, teacher, batch) = subject.build().eval(), probe(torch.float32)
    together = _through(modifier, student, teacher, batch)
    for i in range(SIZE):
        alone = _through(modifier, row(student, i), row(teacher, i), rows_of(batch, i))[0]
        if not torch.isclose(alone, together[i], rtol=1e-4, atol=1e-5):
            raise Broken(f"sample {i} comes out as {alone.item():.6g} alone, {together[i].item():.6g} among {SIZE}")


def _finite(subject: ModifierSubject) -> None:
    hard: list[tuple[str, Probes]] = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        hard += [(f"{name} inputs", probe(dtype)), (f"{name} logits of {LARGE:.0e}", probe(dtype, logits=LARGE))]
    hard.append(("logits all alike", _alike(probe(torch.float32))))
    for given, (student, teacher, batch) in hard:
        run = partial(_run, subject, student, teacher, batch)
        require_finite(run, student.leaves if student.logits.dtype == torch.float32 else [], subject.file, given)


def _alike(answers: Probes) -> Probes:
    student, teacher, batch = answers

    def flat(side: Probe) -> Probe:
        return replace(side, logits=side.leaves[0] * 0 + 0.3)

    return Probes(flat(student), flat(teacher), batch)


def _run(subject: ModifierSubject, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    return _through(subject.build(), student, teacher, batch)


def _draws(subject: ModifierSubject) -> None:
    modifier, (student, teacher, batch) = subject.build().eval(), probe(torch.float32)
    runs: Sequence[Callable[[], object]] = [lambda: _through(modifier, student, teacher, batch)]
    if modifier.selects:
        runs = [*runs, lambda: modifier.mask(teacher, batch)]
    for run in runs:
        require_no_draws(run, subject.file, subject.cls.__name__)


MODIFIER_CHECKS: tuple[Check[ModifierSubject], ...] = (
    Check("shapes out are shapes in", _shapes, first=True),
    Check("mask: a bool a sample", _mask),
    Check("reads no more than it says it needs", _declares),
    Check("a gradient reaches the student, and never the teacher", _gradients),
    Check("sample i alone comes out as in the batch", _alone),
    Check("finite on half precision, large and constant logits", _finite),
    Check("draws nothing from generators that nobody seeds", _draws),
)
