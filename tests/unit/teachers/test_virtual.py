"""The virtual teacher against the equations of the paper, and label smoothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdscale.api import Batch, Outputs, Shapes
from kdscale.config.schema import VirtualConfig
from kdscale.losses.ce import CrossEntropy
from kdscale.losses.kd import SoftTargets
from kdscale.teachers.virtual import VirtualTeacher

B, C = 6, 10


def batch(**more: Tensor) -> Batch:
    images = torch.zeros(B, 1, 2, 2, dtype=torch.uint8)
    return Batch(images, torch.arange(B) % C, torch.arange(B), view=0, **more)


def teacher(correct: float = 0.99, logits: str = "probabilities", classes: int = C) -> VirtualTeacher:
    return VirtualTeacher("v", classes, VirtualConfig.model_validate({"correct": correct, "logits": logits}))


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def student() -> Tensor:
    return (3 * torch.randn(B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()


@given(st.floats(0.01, 0.99), st.integers(2, 200))
def test_it_is_as_sure_as_told_and_the_others_share_the_rest(correct: float, classes: int) -> None:
    answer = teacher(correct, classes=classes)(
        Batch(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]), torch.arange(2), view=0)
    ).logits
    torch.testing.assert_close(answer.sum(1), torch.ones(2))
    torch.testing.assert_close(answer.diagonal(), torch.full((2,), correct))
    assert (answer[0, 1:] == answer[0, 1]).all()


def test_logarithms_are_logits_of_the_probabilities() -> None:
    torch.testing.assert_close(teacher(logits="logarithms")(batch()).logits.softmax(1), teacher()(batch()).logits)


def test_published_numbers_for_a_hundred_classes() -> None:
    """Softening probabilities by 20 leaves .01050 on the label and .00999 elsewhere."""
    soft = (teacher(classes=100)(batch()).logits / 20).softmax(1)
    assert soft[0, 0].item() == pytest.approx(0.01050, abs=5e-6)
    assert soft[0, 1].item() == pytest.approx(0.00999, abs=5e-6)


@pytest.mark.parametrize("logits", ["probabilities", "logarithms"])
def test_the_gradient_is_that_of_smoothed_labels(logits: str) -> None:
    """(1 - a) CE + a KL has the gradient of CE with (1 - a) onehot + a softmax(p / 20)."""
    ours, a, answer = student(), 0.1, teacher(logits=logits)(batch())
    kd = SoftTargets(SoftTargets.Config(temperature=20, temper_student=False), Shapes(C))
    ce = CrossEntropy(CrossEntropy.Config(), Shapes(C))
    mine, labels = Outputs(ours), batch().labels
    loss = (1 - a) * ce(mine, None, batch()).mean() + a * kd(mine, answer, batch()).mean()
    target = (1 - a) * F.one_hot(labels, C).double() + a * (answer.logits.double() / 20).softmax(1)
    expected = gradient(F.cross_entropy(ours, target), ours)
    torch.testing.assert_close(gradient(loss, ours), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("logits", ["probabilities", "logarithms"])
def test_one_that_knows_nothing_is_label_smoothing(logits: str) -> None:
    ours, a = student(), 0.1
    kd = SoftTargets(SoftTargets.Config(temperature=20, temper_student=False), Shapes(C))
    mine, answer = Outputs(ours), teacher(1 / C, logits)(batch())
    loss = (1 - a) * F.cross_entropy(ours, batch().labels) + a * kd(mine, answer, batch()).mean()
    smoothed = F.cross_entropy(ours, batch().labels, label_smoothing=a)
    torch.testing.assert_close(gradient(loss, ours), gradient(smoothed, ours), rtol=1e-6, atol=1e-9)


def test_of_a_mixed_sample_both_labels_count_by_their_shares() -> None:
    share = torch.linspace(0, 1, B)
    mixed = teacher()(batch(labels_b=(torch.arange(B) + 1) % C, lam=share)).logits
    at = torch.arange(B)
    torch.testing.assert_close(mixed[at, at], share * 0.99 + (1 - share) * 0.01 / 9)
    torch.testing.assert_close(mixed[at, (at + 1) % C], (1 - share) * 0.99 + share * 0.01 / 9)


def test_its_fingerprint_is_what_its_answers_depend_on() -> None:
    prints = {
        teacher(*which).fingerprint() for which in [(0.9,), (0.99,), (0.99, "logarithms"), (0.99, "probabilities", 5)]
    }
    assert len(prints) == 4
    assert teacher().fingerprint() == teacher().fingerprint()
