from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.loss_cases import Case, Side, pair_of
from benchmarks.plain_losses import PLAIN
from kdscale import plugins

SAME = Case(
    12, 7,
    {"stem": ((3, 8, 8), (3, 8, 8)), "stage1": ((3, 8, 8), (3, 8, 8)), "stage2": ((4, 4, 4), (4, 4, 4)),
     "stage3": ((5, 2, 2), (5, 2, 2)), "pooled": ((5,), (5,))},
    {"crd": {"negatives": 20}}, pixels=8, depths=(8, 14),
)  # fmt: skip
OTHER = Case(
    12, 7,
    {"stem": ((3, 8, 8), (3, 8, 8)), "stage1": ((3, 8, 8), (6, 8, 8)), "stage2": ((4, 4, 4), (8, 4, 4)),
     "stage3": ((5, 2, 2), (9, 2, 2)), "pooled": ((5,), (9,))},
    {"crd": {"negatives": 20}, "fsp": {"adapter": True}}, pixels=8, depths=(8, 8),
)  # fmt: skip


def test_every_loss_has_a_plain_form() -> None:
    assert sorted(PLAIN) == sorted(plugins.available("losses"))


def results(side: Side) -> list[Tensor]:
    """The value, and its gradients by the student's answers and by what the loss trains."""
    torch.manual_seed(1)
    student, teacher = side.begin()
    side.clear(student)
    value = side.value(student, teacher)
    value.backward()
    answers = [student.logits, *student.features] if student.pixels is None else [student.pixels]
    trained = [part for part in side.parts.parameters() if part.requires_grad]
    return [value.detach(), *(torch.zeros(()) if x.grad is None else x.grad.clone() for x in (*answers, *trained))]


@pytest.mark.parametrize("case", [SAME, OTHER], ids=["same channels", "other channels"])
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_value_and_gradients_are_those_of_the_plain_form(name: str, case: Case) -> None:
    ours, plain = (results(side) for side in pair_of(name, case))
    largest = max(float(gradient.abs().max()) for gradient in plain[1:])
    assert largest > 0
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=0)
    for mine, theirs in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * largest)
