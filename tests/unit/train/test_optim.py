"""The learning rate as a function of the step, against torch's own schedulers; the optimizer's groups."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from kdscale.config.schema import TrainConfig
from kdscale.optim import OwnRate, learning_rate, make_optimizer

EPOCHS, STEPS = 4, 25


def rates(steps: int = EPOCHS * STEPS, **options: object) -> list[float]:
    rate = learning_rate(TrainConfig.model_validate({"epochs": EPOCHS, "lr": 0.4} | options), STEPS)
    return [rate(step) for step in range(steps)]


def of_torch(make: type[LRScheduler], **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = make(optimizer, **options)
    found = []
    for _ in range(EPOCHS * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_torchs() -> None:
    assert rates(schedule="cosine") == pytest.approx(of_torch(CosineAnnealingLR, T_max=EPOCHS * STEPS))


@pytest.mark.parametrize("milestones", [[0.5, 0.75], [2.0, 3.0]], ids=["shares", "epochs"])
def test_multistep_is_torchs(milestones: list[float]) -> None:
    expected = of_torch(MultiStepLR, milestones=[50, 75], gamma=0.2)
    assert rates(schedule="multistep", milestones=milestones, gamma=0.2) == pytest.approx(expected)


def test_constant() -> None:
    assert set(rates(schedule="constant")) == {0.4}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "multistep", "onecycle"])
def test_warm_up_rises_in_even_steps_to_the_full_rate(schedule: str) -> None:
    found = rates(schedule=schedule, warmup_epochs=0.4)
    assert found[:10] == pytest.approx([0.4 * (step + 1) / 11 for step in range(10)])
    assert found[10] == pytest.approx(0.4)
    assert max(found) == pytest.approx(0.4)
    assert min(found) > 0


def test_cosine_after_a_warm_up_falls_from_the_full_rate_to_nothing() -> None:
    found = rates(schedule="cosine", warmup_epochs=0.4)
    assert found[10 + 45] == pytest.approx(0.2)
    assert found[-1] < 0.4 * 0.001


def test_onecycle_falls_in_a_straight_line() -> None:
    found = rates(schedule="onecycle", warmup_epochs=2)
    falls = [a - b for a, b in pairwise(found[50:])]
    assert falls == pytest.approx([0.4 / 50] * 49)
    assert found[-1] == pytest.approx(0.4 / 50)


def test_past_the_end_and_without_epochs_it_stays_defined() -> None:
    assert rates(steps=200, schedule="onecycle")[-1] == rates(schedule="onecycle")[-1]
    assert rates(steps=3, schedule="cosine", epochs=0)[0] == pytest.approx(0.4)


def parameters() -> list[tuple[str, nn.Parameter]]:
    names = ("student.head", "terms.crd.project", "modifiers.crd.0", "terms.kd.scale", "student.frozen")
    made = [(name, nn.Parameter(torch.ones(2))) for name in names]
    made[-1][1].requires_grad_(False)
    return made


def test_terms_may_have_rates_of_their_own() -> None:
    own = {"terms.crd.": OwnRate(0.1, None), "terms.kd.": OwnRate(2.0, 0.0)}
    groups = make_optimizer(parameters(), TrainConfig(weight_decay=0.01), own).param_groups
    found = [(group["lr_factor"], group["weight_decay"], len(group["params"])) for group in groups]
    assert found == [(1.0, 0.01, 2), (0.1, 0.01, 1), (2.0, 0.0, 1)]


def test_kinds() -> None:
    sgd = make_optimizer(parameters(), TrainConfig(momentum=0.8, nesterov=True), {})
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    assert isinstance(make_optimizer(parameters(), TrainConfig(optimizer="adamw"), {}), torch.optim.AdamW)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        make_optimizer(parameters()[-1:], TrainConfig(), {})
