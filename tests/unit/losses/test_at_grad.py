from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.at_grad import GradientAttention
from kdscale.nn.input import NetworkInput
from kdscale.nn.network import Network
from kdscale.teachers.network import NetworkTeacher

SEEDS = st.integers(0, 99)


def network(seed: int, std: float = 0.5, *, input_grad: bool = True) -> Network:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 5))
    built = Network(model, NetworkInput(given=1, given_size=6, channels=1, size=6, mean=[0.5], std=[std])).double()
    built.input_grad = input_grad
    return built


def drawn(seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, 1, 6, 6), generator=rng, dtype=torch.uint8)
    return Batch(images, torch.randint(0, 5, (3,), generator=rng), torch.arange(3), view=0)


def value(student: Outputs, teacher: Outputs | None, batch: Batch, **options: Any) -> Tensor:
    return GradientAttention(GradientAttention.Config(**options), Shapes(classes=5))(student, teacher, batch)


@given(seed=SEEDS)
def test_the_derivative_is_that_of_the_cross_entropy_by_the_pixels(seed: int) -> None:
    student, batch, step = network(seed), drawn(seed), 1e-5
    blind = network(seed)
    nn.init.zeros_(blind.model[3].weight)  # whose derivative is zero
    got = value(student(batch.images), blind(batch.images), batch)

    pixels = batch.images.double() / 255
    slopes = torch.zeros_like(pixels)
    for i in range(36):
        shift = torch.zeros(36, dtype=torch.float64)
        shift[i] = step
        sides = [
            nn.functional.cross_entropy(
                student.model(student.input((pixels + sign * shift.view(6, 6)) * 255)), batch.labels, reduction="none"
            )
            for sign in (1, -1)
        ]
        slopes.flatten(1)[:, i] = (sides[0] - sides[1]).detach() / (2 * step)
    torch.testing.assert_close(got, slopes.flatten(1).norm(dim=1), rtol=1e-6, atol=1e-8)


@given(seed=SEEDS)
def test_a_sample_alone_has_the_value_it_has_in_the_batch(seed: int) -> None:
    student, teacher, batch = network(seed), network(seed + 100), drawn(seed)
    together = value(student(batch.images), teacher(batch.images), batch)
    first = batch.first(1)
    torch.testing.assert_close(value(student(first.images), teacher(first.images), first), together[:1])
    squared = value(student(batch.images), teacher(batch.images), batch, mode="squared")
    torch.testing.assert_close(squared, together.square())


@pytest.mark.parametrize("mode", ["norm", "squared"])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(mode: str) -> None:
    student, batch = network(0), drawn(0)
    values = value(student(batch.images), network(0)(batch.images), batch, mode=mode)
    values.sum().backward()
    assert values.tolist() == [0.0] * 3
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in student.parameters())


def test_networks_with_other_normalisations_are_compared_by_the_same_pixels() -> None:
    student, teacher, batch = network(0), network(0, std=0.25), drawn(0)
    with torch.no_grad():
        teacher.model[0].weight /= 2
    values = value(student(batch.images), teacher(batch.images), batch)
    torch.testing.assert_close(values, torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_live_teacher_answers_with_pixels_and_receives_no_gradient() -> None:
    student, given_, batch = network(0), network(1), drawn(0)
    answer = NetworkTeacher("t", given_, device=torch.device("cpu"), precision="bf16")(batch)
    assert answer.logits.dtype == torch.float64
    value(student(batch.images), answer, batch).sum().backward()
    assert answer.pixels is not None
    assert answer.pixels.grad is None
    assert all(p.grad is None for p in given_.parameters())
    assert all(p.grad is not None for p in student.model[0].parameters())


def test_mixed_labels_weigh_by_their_share() -> None:
    student, teacher, batch = network(0), network(1), drawn(0)
    ones = replace(batch, labels_b=batch.labels.flip(0), lam=torch.zeros(3, dtype=torch.float64))
    other = replace(batch, labels=batch.labels.flip(0))
    answers = student(batch.images), teacher(batch.images)
    torch.testing.assert_close(value(*answers, ones), value(*answers, other))


def test_without_gradients_nothing_is_kept_for_them() -> None:
    with torch.no_grad():
        assert network(0)(drawn(0).images).pixels is None
    assert network(0, input_grad=False)(drawn(0).images).pixels is None


def test_a_side_without_pixels_is_refused() -> None:
    batch = drawn(0)
    answer = network(0)(batch.images)
    for teacher in (None, Outputs(answer.logits.detach())):
        with pytest.raises(ShapeError, match=r"at_grad: .*pixels"):
            value(answer, teacher, batch)
