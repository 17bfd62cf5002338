"""Wide residual networks against the counts of the literature's three."""

from __future__ import annotations

import pytest
import torch

from kdscale.models.wrn import WideResNet


@pytest.mark.parametrize(("depth", "widen", "count"), [(40, 2, 2_255_156), (16, 2, 703_284), (40, 1, 569_780)])
def test_has_the_published_number_of_parameters(depth: int, widen: int, count: int) -> None:
    with torch.device("meta"):
        model = WideResNet(classes=100, depth=depth, widen=widen)
    assert sum(p.numel() for p in model.parameters()) == count


def test_dropout_works_in_training_only() -> None:
    model = WideResNet(classes=3, depth=10, widen=1, dropout=0.5)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_refuses_other_depths() -> None:
    with pytest.raises(ValueError, match="nearest is 16"):
        WideResNet(classes=10, depth=18)
