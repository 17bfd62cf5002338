"""Recognising a network that is good but numbers its classes differently."""

from __future__ import annotations

import torch

from kdscale.nn.class_order import permuted_classes


def answers(right: float, count: int, classes: int, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a network that is right so often, in its own order of classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (count,), generator=generator)
    guesses = torch.randint(0, classes, (count,), generator=generator)
    knows = torch.rand(count, generator=generator) < right
    said = order[torch.where(knows, labels, guesses)]
    return torch.nn.functional.one_hot(said, classes).float(), labels


def test_a_good_network_in_the_right_order() -> None:
    found = permuted_classes(*answers(0.9, 512, 20, torch.arange(20)))
    assert found.top1 > 0.85
    assert found.relabelled_top1 == found.top1
    assert not found.permuted
    assert found.advice("stages.t.student") == ""


def test_a_good_network_in_another_order() -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    found = permuted_classes(*answers(0.86, 512, 200, order))
    assert found.top1 < 0.03
    assert found.relabelled_top1 > 0.84
    assert found.permuted
    assert "stages.t.student.class_names" in found.advice("stages.t.student")


def test_noise_is_not_called_permuted_however_well_it_can_be_relabelled() -> None:
    found = permuted_classes(*answers(0.0, 512, 200, torch.arange(200)))
    assert found.relabelled_top1 > 0.15, "the trap: a relabelling fitted to noise looks good"
    assert not found.permuted


def test_a_network_that_is_simply_bad() -> None:
    assert not permuted_classes(*answers(0.3, 512, 10, torch.arange(10))).permuted
