from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.dkd import DecoupledSoftTargets, decoupled
from kdscale.losses.kd import soft_targets

SEEDS, TEMPERATURES = st.integers(0, 999), st.floats(0.5, 16)


def drawn(seed: int) -> tuple[Tensor, Tensor, Batch]:
    rng = np.random.default_rng(seed)
    student, teacher = torch.from_numpy(rng.normal(scale=5, size=(2, 7, 11)))
    labels = torch.from_numpy(rng.integers(0, 11, 7))
    return student, teacher, Batch(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(7), view=0)


def loss(**options: Any) -> DecoupledSoftTargets:
    return DecoupledSoftTargets(DecoupledSoftTargets.Config(**options), Shapes(classes=11))


@pytest.mark.parity
@given(seed=SEEDS, t=TEMPERATURES, alpha=st.floats(0, 3), beta=st.floats(0, 10))
def test_equals_the_papers_formula(seed: int, t: float, alpha: float, beta: float) -> None:
    student, teacher, batch = drawn(seed)
    got = loss(temperature=t, alpha=alpha, beta=beta)(Outputs(student), Outputs(teacher), batch)

    for i, label in enumerate(batch.labels):
        p, q = (np.exp(z[i].numpy() / t) for z in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        rest = np.arange(11) != int(label)
        target = sum(a * np.log(a / b) for a, b in ((p[~rest], q[~rest]), (p[rest].sum(), q[rest].sum())))
        p_rest, q_rest = p[rest] / p[rest].sum(), q[rest] / q[rest].sum()
        others = (p_rest * np.log(p_rest / q_rest)).sum()
        want = t**2 * (alpha * float(target[0]) + beta * others)
        np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parity
@given(seed=SEEDS, t=st.floats(1, 16))
def test_equals_the_authors_code(seed: int, t: float) -> None:
    student, teacher, batch = drawn(seed)
    mask = torch.zeros_like(student).scatter_(1, batch.labels[:, None], 1.0)

    def two(z: Tensor) -> Tensor:
        p = (z / t).softmax(1)
        return torch.stack([(p * mask).sum(1), (p * (1 - mask)).sum(1)], 1)

    kept = [z / t - 1000 * mask for z in (student, teacher)]
    target = functional.kl_div(two(student).log(), two(teacher), reduction="sum") * t**2 / 7
    others = functional.kl_div(kept[0].log_softmax(1), kept[1].softmax(1), reduction="sum") * t**2 / 7

    got = loss(temperature=t)(Outputs(student), Outputs(teacher), batch).mean()

    torch.testing.assert_close(got, target + 8 * others, rtol=1e-6, atol=1e-9)


@given(seed=SEEDS, t=TEMPERATURES)
def test_its_parts_add_up_to_soft_targets(seed: int, t: float) -> None:
    student, teacher, batch = drawn(seed)
    target, others = decoupled(student, teacher, batch.labels, t)
    p_label = (teacher / t).softmax(1)[torch.arange(7), batch.labels]
    torch.testing.assert_close(target + (1 - p_label) * others, soft_targets(student, teacher, t, t))


@given(seed=SEEDS, shift=st.floats(-50, 50))
def test_a_shift_of_a_samples_logits_changes_nothing(seed: int, shift: float) -> None:
    student, teacher, batch = drawn(seed)
    moved = loss()(Outputs(student + shift), Outputs(teacher - shift), batch)
    torch.testing.assert_close(moved, loss()(Outputs(student), Outputs(teacher), batch), rtol=1e-6, atol=1e-9)


@given(seed=SEEDS)
def test_mixed_labels_weigh_by_their_share(seed: int) -> None:
    student, teacher, batch = drawn(seed)
    other = replace(batch, labels=batch.labels.flip(0))
    lam = torch.linspace(0, 1, 7, dtype=torch.float64)
    mixed = replace(batch, labels_b=other.labels, lam=lam)
    first, second, both = (loss()(Outputs(student), Outputs(teacher), b) for b in (batch, other, mixed))
    torch.testing.assert_close(both, lam * first + (1 - lam) * second)


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    student, _, batch = drawn(0)
    student.requires_grad_()
    values = loss()(Outputs(student), Outputs(student.detach()), batch)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros_like(values))
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at", [0, 1])
def test_huge_and_constant_logits_stay_finite(at: int, half: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [2.0, 2.0, 2.0]], dtype=half, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]], dtype=half)
    batch = replace(drawn(0)[2].first(2), labels=torch.tensor([at, at]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = DecoupledSoftTargets(DecoupledSoftTargets.Config(), Shapes(classes=3))(
            Outputs(student), Outputs(teacher), batch
        )
    values.sum().backward()
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert abs(values[1].item()) < 1e-5
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_a_single_class_and_bad_options_are_refused() -> None:
    with pytest.raises(ShapeError, match="single class"):
        DecoupledSoftTargets(DecoupledSoftTargets.Config(), Shapes(classes=1))
    with pytest.raises(ValueError, match="temperature"):
        DecoupledSoftTargets.Config(temperature=0.0)
    with pytest.raises(ValueError, match="beta"):
        DecoupledSoftTargets.Config(beta=-1.0)
