from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdscale.api import Batch, Loss, Modifier, Outputs, PluginConfig, Shapes, Term
from kdscale.losses.ce import CrossEntropy
from kdscale.losses.kd import SoftTargets
from kdscale.nn.measures import Measures
from kdscale.strategies.distill import Distill

SHAPES = Shapes(classes=3, student=[(4,), (2,)], teacher=[(2,), (4,)])
LABELS = torch.tensor([0, 1, 2, 1])
BATCH = Batch(torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2), LABELS, torch.arange(4), view=0, step=7)


class Student(nn.Module):
    """A linear network that taps its input and its first two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Outputs:
        flat = images.flatten(1) / 16
        logits = self.head(flat)
        return Outputs(logits, [flat, logits[:, :2]])


class Regression(Loss):
    """Compares one feature through a projector that trains: what a feature loss looks like."""

    def __init__(self, config: PluginConfig, shapes: Shapes) -> None:
        super().__init__(config, shapes)
        self.project = nn.Linear(2, 2)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        assert teacher is not None
        assert not torch.is_autocast_enabled("cpu")
        return (self.project(student.features[0].float()) - teacher.features[0]).square().sum(1)


class Measuring(Regression, Measures):
    """Says how large its feature is, for whoever watches."""

    figures = ("size",)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        self.measured = {"size": student.features[0].detach().abs().mean()}
        return super().forward(student, teacher, batch)


class Twice(Modifier):
    """Doubles the teacher's logits before and the values after."""

    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        assert teacher is not None
        return student, Outputs(2 * teacher.logits, teacher.features)

    def after(self, values: Tensor, batch: Batch) -> Tensor:
        return 2 * values


def taught() -> dict[str, Outputs]:
    rng = torch.Generator().manual_seed(1)
    return {
        name: Outputs(torch.randn(4, 3, generator=rng), [torch.randn(4, d, generator=rng) for d in (2, 4)])
        for name in ("big", "small")
    }


def ce(weight: float = 1.0) -> Term:
    return Term("ce", CrossEntropy(CrossEntropy.Config(), SHAPES), lambda step: weight)


def kd(weight: float = 1.0, teacher: str = "big", **more: object) -> Term:
    return Term(f"kd_{teacher}", SoftTargets(SoftTargets.Config(), SHAPES), lambda step: weight, teacher, **more)  # type: ignore[arg-type]


def hint() -> Term:
    return Term("hint", Regression(PluginConfig(), SHAPES), lambda step: 1.0, "big", (), (1,), (0,))


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student()


def test_the_total_is_the_weighted_sum_of_the_terms_means(student: Student) -> None:
    losses = Distill(student, {"main": [ce(0.1), kd(0.9)]})(BATCH, taught(), "main")
    logits = student(BATCH.images).logits
    torch.testing.assert_close(losses.terms["ce"], nn.functional.cross_entropy(logits, LABELS))
    torch.testing.assert_close(losses.total, 0.1 * losses.terms["ce"] + 0.9 * losses.terms["kd_big"])
    assert not losses.terms["ce"].requires_grad


def test_weights_are_those_of_the_batchs_step(student: Student) -> None:
    term = Term("ce", CrossEntropy(CrossEntropy.Config(), SHAPES), lambda step: float(step))
    losses = Distill(student, {"main": [term]})(BATCH, {}, "main")
    torch.testing.assert_close(losses.total, 7 * losses.terms["ce"])


def test_each_term_listens_to_its_own_teacher(student: Student) -> None:
    answers = taught()
    losses = Distill(student, {"main": [kd(teacher="big"), kd(teacher="small")]})(BATCH, answers, "main")
    answered = student(BATCH.images)
    for name in answers:
        want = SoftTargets(SoftTargets.Config(), SHAPES)(answered, answers[name], BATCH).mean()
        torch.testing.assert_close(losses.terms[f"kd_{name}"], want)


def test_a_term_sees_the_taps_it_asked_for_and_its_own_parts_train(student: Student) -> None:
    strategy = Distill(student, {"main": [hint()]})
    answers = taught()
    losses = strategy(BATCH, answers, "main")
    losses.total.backward()
    own = strategy.terms["hint"].project
    want = (own(student(BATCH.images).logits[:, :2]) - answers["big"].features[0]).square().sum(1).mean()
    torch.testing.assert_close(losses.terms["hint"], want.detach())
    assert dict(strategy.named_parameters())["terms.hint.project.weight"].grad is not None


def test_what_a_term_measures_is_a_figure_of_the_pass_that_it_is_in(student: Student) -> None:
    measuring = Term("hint", Measuring(PluginConfig(), SHAPES), lambda step: 1.0, "big", (), (1,), (0,))
    strategy = Distill(student, {"main": [ce()], "second": [measuring]})
    assert strategy.figures == ("hint/size",)
    assert strategy(BATCH, taught(), "main").figures == {}
    figures = strategy(BATCH, taught(), "second").figures
    assert figures == {"hint/size": student(BATCH.images).logits[:, :2].abs().mean()}
    assert not figures["hint/size"].requires_grad


def test_modifiers_change_what_the_loss_sees_and_what_it_says(student: Student) -> None:
    plain, answers = kd(), taught()
    changed = kd(modifiers=[Twice(PluginConfig(), SHAPES)])
    got = Distill(student, {"main": [changed]})(BATCH, answers, "main").total
    doubled = {"big": Outputs(2 * answers["big"].logits, answers["big"].features)}
    torch.testing.assert_close(got, 2 * Distill(student, {"main": [plain]})(BATCH, doubled, "main").total)


def test_passes_hold_their_own_terms(student: Student) -> None:
    strategy = Distill(student, {"general": [ce()], "wise": [kd()]})
    assert strategy.passes == ("general", "wise")
    assert set(strategy(BATCH, taught(), "general").terms) == {"ce"}
    assert set(strategy(BATCH, taught(), "wise").terms) == {"kd_big"}


def test_losses_are_computed_outside_autocast(student: Student) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = Distill(student, {"main": [ce(), hint()]})(BATCH, taught(), "main")
    assert losses.total.dtype == torch.float32
