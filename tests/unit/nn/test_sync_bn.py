"""Synchronised BatchNorm in one process; tests/distributed has it in two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale import ranks
from kdscale.errors import ConfigError, ShapeError
from kdscale.nn.sync_bn import SyncBatchNorm, average_buffers, needs_two_values, to_sync_bn


def test_converts_in_place_and_keeps_what_refers_to_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4))
    seen: list[torch.Tensor] = []
    model[1].register_forward_hook(lambda *given: seen.append(given[2]))
    weight = model[1].weight
    assert to_sync_bn(model) is model
    assert isinstance(model[1], SyncBatchNorm)
    assert isinstance(model[4], SyncBatchNorm)
    assert model[1].weight is weight
    model(torch.zeros(2, 1, 8, 8))
    assert len(seen) == 1


def test_alone_it_is_torchs_own_bitwise() -> None:
    torch.manual_seed(0)
    plain, synced = nn.BatchNorm2d(3), to_sync_bn(nn.BatchNorm2d(3))
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(plain(x), synced(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), synced.buffers(), strict=True))
    assert torch.equal(plain.eval()(x), synced.eval()(x))


def test_refuses_norms_that_do_more() -> None:
    class WithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match="WithActivation"):
        to_sync_bn(nn.Sequential(WithActivation(3)))


def test_averages_are_copies() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(2)))
    averaged = average_buffers(model)
    assert list(averaged) == ["0.running_mean", "0.running_var", "1.0.running_mean", "1.0.running_var"]
    averaged["0.running_mean"].add_(1)
    assert model[0].running_mean is not None
    assert model[0].running_mean.sum() == 0


def test_one_value_a_channel_is_refused_in_training_only() -> None:
    part, alone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.zeros(1, 3)
    with pytest.raises(ShapeError, match=r"^ab: .*one value a channel.*train.batch_size"):
        needs_two_values("ab", alone, part)
    needs_two_values("ab", torch.zeros(2, 3), part)
    needs_two_values("ab", torch.zeros(1, 3, 2, 1), part)
    needs_two_values("ab", alone, nn.Linear(3, 4))
    needs_two_values("ab", alone, part.eval())


def test_one_value_a_channel_on_each_of_two_ranks_are_two_if_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(ShapeError, match="bn: sync"):
        needs_two_values("ab", torch.zeros(1, 3), nn.BatchNorm1d(3))
    needs_two_values("ab", torch.zeros(1, 3), to_sync_bn(nn.BatchNorm1d(3)))
