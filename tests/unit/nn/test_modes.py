from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from kdscale.nn.modes import evaluating


def test_each_module_comes_back_in_its_own_mode() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.ReLU())
    network.train()
    network[1].eval()
    with suppress(ArithmeticError), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise ArithmeticError
    assert [module.training for module in network.modules()] == [True, True, False, True]


def test_a_frozen_batch_norm_stays_as_it_is_after_an_evaluation() -> None:
    frozen, trained = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    network = nn.Sequential(trained, frozen).train()
    frozen.eval()
    with evaluating(network):
        network(torch.ones(4, 3))
    network(torch.arange(12.0).view(4, 3))
    assert frozen.num_batches_tracked == 0
    assert trained.num_batches_tracked == 1
