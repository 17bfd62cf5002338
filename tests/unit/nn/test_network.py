"""Taps: the features they read, and every way in which a tap would lie."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.errors import ShapeError, TapError
from kdscale.nn.build import build_network
from kdscale.nn.network import Network, NetworkInput

INFO = DatasetInfo(10, 3, 32, 100, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), tuple("abcdefghij"))
MODELS = {
    "resnet_cifar": {"depth": 8},
    "wrn": {"depth": 10, "widen": 1},
    "vgg": {"depth": 8},
    "plain_cnn": {"depth": 8},
    "mobilenet_v2": {"width": 0.25},
    "shufflenet_v2": {"width": 0.5},
}


def built(model: str, taps: list[str], device: str = "cpu") -> Network:
    return build_network(StudentConfig(model=model, **MODELS[model]), INFO, 32, taps=taps, device=device)


def names(model: str) -> list[str]:
    return list(built(model, [], "meta").model.taps)


def pixels(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", MODELS)
class TestEveryModel:
    def test_all_its_taps_can_be_read_together(self, model: str) -> None:
        taps = names(model)
        network = built(model, taps)
        assert {"stem", "stage1", "stage1.pre", "stage2", "pooled"} <= set(taps)
        shapes = network.tap_shapes(32)
        assert shapes == built(model, taps, "meta").tap_shapes(32)
        for training in (True, False):
            answer = network.train(training)(pixels())
            assert [tuple(f.shape[1:]) for f in answer.features] == shapes

    def test_features_behind_a_relu_are_not_negative_and_others_are(self, model: str) -> None:
        taps = names(model)
        network = built(model, taps)
        for tap, feature in zip(taps, network(pixels()).features, strict=True):
            assert (feature.min() >= 0) == network.post_relu(tap), tap

    def test_pre_is_the_value_before_the_relu_of_its_stage(self, model: str) -> None:
        network = built(model, ["stage2.pre", "stage2"])
        if not network.post_relu("stage2"):
            pytest.skip("its stages end without a ReLU")
        before, behind = network(pixels()).features
        assert torch.equal(before.relu(), behind)

    def test_a_copy_reads_its_own_features(self, model: str) -> None:
        network = built(model, ["stage1"]).eval()
        twin = copy.deepcopy(network)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert network(pixels()).features[0].abs().sum() > 0
        assert twin(pixels()).features[0].abs().sum() == 0

    def test_gradients_reach_every_parameter(self, model: str) -> None:
        network = built(model, [])
        network(pixels()).logits.square().sum().backward()
        assert not [name for name, p in network.named_parameters() if p.grad is None]


class Awkward(nn.Module):
    """Everything that can be wrong with a tap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Identity()
        self.unused = nn.Linear(1, 1)
        self.pair = Pair()
        self.added = nn.Identity()
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.twice(self.twice(x))
        x = self.added(x * 1.0)
        x += self.pair(x)[0]
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 0.5, x


def awkward(*taps: str) -> Network:
    seen = NetworkInput(given=3, given_size=8, channels=3, size=8, mean=[0.5] * 3, std=[0.5] * 3)
    return Network(Awkward(), seen, taps)


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        ("bn", "overwritten in place"),
        ("added", "overwritten in place"),
        ("twice", "fires 2 times"),
        ("unused", "is silent"),
        ("pair", "gives a tuple"),
    ],
)
def test_a_tap_that_would_lie_is_refused(tap: str, said: str) -> None:
    with pytest.raises(TapError, match=rf"tap {tap} .*{said}"):
        awkward(tap).tap_shapes(8)


def test_a_missing_tap_names_near_ones() -> None:
    with pytest.raises(TapError, match="no tap rellu; did you mean relu"):
        awkward("rellu")


def test_a_good_tap_beside_bad_places() -> None:
    network = awkward("relu", "head")
    assert network.tap_shapes(8) == [(4, 6, 6), (10,)]
    assert network.post_relu("relu")
    assert not network.post_relu("conv")


def test_a_dry_forward_leaves_no_trace() -> None:
    network = awkward("relu").train()
    network.model.bn.eval()  # type: ignore[union-attr]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.tap_shapes(8)
    assert network.training
    assert network.model.conv.training  # type: ignore[union-attr]
    assert not network.model.bn.training  # type: ignore[union-attr]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_features_are_handed_over_and_not_kept() -> None:
    network = awkward("relu")
    network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert network.catches[0].shape is None


def test_images_that_the_model_cannot_take_are_a_shape_error() -> None:
    with pytest.raises(ShapeError, match=r"Awkward fails on \(3, 2, 2\)"):
        Network(Awkward(), NetworkInput(given=3, given_size=2, channels=3, size=2, mean=[0.0] * 3, std=[1.0] * 3)).dry(
            2
        )
