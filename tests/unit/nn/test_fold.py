"""Folding: the same answers without BatchNorm, and no folding where that would not hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.nn.build import build_network
from kdscale.nn.fold import fold
from kdscale.nn.network import Network, NetworkInput

INFO = DatasetInfo(10, 3, 32, 100, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), tuple("abcdefghij"))
# How many BatchNorms stay: those that no convolution feeds.
STAYING = {"resnet_cifar": 0, "wrn": 4, "vgg": 0, "plain_cnn": 0, "mobilenet_v2": 0, "shufflenet_v2": 0}
OPTIONS = {
    "resnet_cifar": {"depth": 8},
    "wrn": {"depth": 10},
    "mobilenet_v2": {"width": 0.25},
    "shufflenet_v2": {"width": 0.5},
}


def lived(network: Network) -> Network:
    """With statistics as after training, so that leaving a BatchNorm out would show."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in ((norm.running_mean, -1.0, 1.0), (norm.running_var, 0.5, 2.0)):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
            with torch.no_grad():
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
                norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
    return network.eval()


def norms(network: Network) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def pixels(size: int = 32) -> Tensor:
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", STAYING)
def test_answers_as_before(model: str) -> None:
    config = StudentConfig(model=model, **OPTIONS.get(model, {}))
    taps = list(build_network(config, INFO, 32, device="meta").model.taps)
    network = lived(build_network(config, INFO, 32, taps=taps)).double()
    folded = fold(network)
    assert norms(folded) == STAYING[model]
    with torch.no_grad():
        before, behind = network(pixels()), folded(pixels())
    for a, b in zip([before.logits, *before.features], [behind.logits, *behind.features], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))


def test_leaves_the_network_itself_alone() -> None:
    network = lived(build_network(StudentConfig(model="resnet_cifar", depth=8), INFO, 32))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert norms(fold(network)) == 0
    assert norms(network) == 9
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class Odd(nn.Module):
    """A convolution whose output is also used raw; a shared one; one changed in place; and one good pair."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shared, self.shared_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.changed, self.changed_bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good_bn(self.good(x)).relu()
        x = self.shared_bn(self.shared(self.shared(x)))
        x = self.changed_bn(self.changed(x).relu_())
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class RawToo(Odd):
    def forward(self, x: Tensor) -> Tensor:
        raw = self.good(x)
        logits: Tensor = self.head((self.good_bn(raw) + raw).mean((2, 3)))
        return logits


def odd(model: nn.Module, *taps: str) -> Network:
    seen = NetworkInput(given=3, given_size=8, channels=3, size=8, mean=[0.5] * 3, std=[0.5] * 3)
    return lived(Network(model, seen, taps))


def test_folds_only_what_runs_once_and_unchanged() -> None:
    network = odd(Odd())
    folded = fold(network)
    assert norms(folded) == 2
    assert isinstance(folded.model.get_submodule("good_bn"), nn.Identity)
    torch.testing.assert_close(folded(pixels(8)).logits, network(pixels(8)).logits, rtol=1e-4, atol=1e-5)


def test_folds_nothing_where_the_raw_output_is_used_as_well() -> None:
    network = odd(RawToo())
    folded = fold(network)
    assert norms(folded) == 3
    assert torch.equal(folded(pixels(8)).logits, network(pixels(8)).logits)


def test_a_tapped_convolution_is_not_folded_and_a_tapped_norm_moves_along() -> None:
    assert norms(fold(odd(Odd(), "good"))) == 3
    network = odd(Odd(), "good_bn")
    folded = fold(network)
    assert norms(folded) == 2
    torch.testing.assert_close(folded(pixels(8)).features[0], network(pixels(8)).features[0], rtol=1e-4, atol=1e-5)


def test_a_network_without_batchnorm_is_only_copied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network = odd(model)
    assert torch.equal(fold(network)(pixels(8)).logits, network(pixels(8)).logits)
