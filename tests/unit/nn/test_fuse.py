"""What a convolution takes over: every sum and ReLU behind it that is its own, nothing that would change answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
import torch
from torch import Tensor, fx, nn

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.nn.build import build_network
from kdscale.nn.fold import fold
from kdscale.nn.fuse import _Convolution, _convolutions, fuse
from kdscale.nn.network import Network, NetworkInput
from kdscale.teachers.network import NetworkTeacher
from tests.unit.teachers.test_network import batch

INFO = DatasetInfo(10, 1, 28, 100, 20, (0.3,), (0.35,), tuple("abcdefghij"))


@pytest.fixture(autouse=True)
def _unchecked() -> Iterator[None]:
    """Tests check the types of arguments at run time, and what traces a model is no tensor."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def prepared(network: Network) -> Network:
    return fold(network).eval().prepare(channels_last=True, device="cpu")


def fused_of(network: Network) -> list[_Convolution]:
    return [module for module in network.model.modules() if isinstance(module, _Convolution)]


def doing_more(network: Network) -> list[fx.Node]:
    """Calls of convolutions that add or rectify as well."""
    if not isinstance(network.model, fx.GraphModule):
        return []
    return [node for node, conv in _convolutions(network.model).items() if len(node.args) > 1 or conv._last is not None]


def images(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "alone", "in_place"),
    [
        ({"model": "resnet_cifar", "depth": 20}, 2, 9),  # what shortcuts bring to a sum is not rectified
        ({"model": "resnet_cifar", "depth": 14, "block": "bottleneck"}, 3, 6),
        ({"model": "plain_cnn"}, 0, 0),
    ],
)
def test_all_that_can_be_is_fused_and_answers_stay(model: dict[str, object], alone: int, in_place: int) -> None:
    network = build_network(StudentConfig.model_validate(model), INFO, 28)
    plain, fused = prepared(network), prepared(network)
    fuse(fused, None)
    assert isinstance(fused.model, fx.GraphModule)
    assert not any(type(module) in (nn.Conv2d, nn.ReLU) for module in fused.model.modules())
    assert len(fused_of(fused)) - len(doing_more(fused)) == alone
    assert sum(conv.into_other for conv in fused_of(fused)) == in_place
    with torch.no_grad():
        torch.testing.assert_close(fused(images()).logits, plain(images()).logits, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    """Two convolutions of one size, and what a test makes of them."""

    def __init__(self, join: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.gate = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x).flatten(1)[:, :10]


def shared(net: Net, x: Tensor) -> Tensor:
    middle = net.first(x)
    return net.second(net.act(middle)) + middle


def broadcast(net: Net, x: Tensor) -> Tensor:
    return net.act(net.second(net.first(x)) + net.gate(x))


def in_place(net: Net, x: Tensor) -> Tensor:
    short = net.act(net.first(x))
    kept = short * 2
    short += net.second(short)
    return short + kept + short.relu_()


def twice(net: Net, x: Tensor) -> Tensor:
    middle = net.first(x).relu()
    return net.second(net.second(middle).relu() + middle).relu()


def to_itself(net: Net, x: Tensor) -> Tensor:
    middle = net.first(x)
    return torch.relu(middle + middle)


def read_later(net: Net, x: Tensor) -> Tensor:
    middle = net.first(x).relu()
    return net.act(net.second(net.second(middle)) + middle) * net.second(middle)


def read_as_a_view(net: Net, x: Tensor) -> Tensor:
    middle = net.first(x).relu()
    view = middle.flatten(2)
    return net.act(net.second(net.second(middle)) + middle).flatten(2) * view


def one_after_the_other(net: Net, x: Tensor) -> Tensor:
    middle = net.first(x).relu()
    middle = net.act(net.second(net.second(middle)) + middle)
    return net.act(net.second(net.second(middle)) + middle)


def into_what_is_given(net: Net, x: Tensor) -> Tensor:
    given = x.expand(-1, 4, -1, -1)
    return net.act(net.second(net.first(x)) + given)


def by_keyword(net: Net, x: Tensor) -> Tensor:
    return net.act(net.first(input=x))


@pytest.mark.parametrize(
    ("join", "fused", "written_in_place"),
    [
        (shared, 1, 0), (broadcast, 0, 0), (in_place, 2, 0), (twice, 3, 0), (to_itself, 0, 0), (read_later, 2, 0),
        (read_as_a_view, 2, 0), (one_after_the_other, 3, 2), (into_what_is_given, 1, 0), (by_keyword, 1, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_what_others_read_is_left_to_them(
    join: Callable[[nn.Module, Tensor], Tensor], fused: int, written_in_place: int
) -> None:
    source = NetworkInput(given=1, given_size=28, channels=1, size=28, mean=(0.3,), std=(0.35,))
    plain, ours = (prepared(Network(Net(join), source)) for _ in range(2))
    with torch.no_grad():
        expected = plain(images()).logits
        fuse(ours, None)
        torch.testing.assert_close(ours(images()).logits, expected, rtol=1e-4, atol=1e-5)
    assert len(doing_more(ours)) == fused
    assert sum(conv.into_other for conv in fused_of(ours)) == written_in_place


def test_a_model_that_decides_by_its_values_is_left_alone() -> None:
    def decides(net: Net, x: Tensor) -> Tensor:
        return net.act(net.first(x if x.mean() > 0 else -x))

    source = NetworkInput(given=1, given_size=28, channels=1, size=28, mean=(0.3,), std=(0.35,))
    network = prepared(Network(Net(decides), source))
    assert fuse(network, None) is None
    assert isinstance(network.model, Net)


def test_where_the_operators_fail_the_network_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: nn.Module, x: Tensor, other: Tensor | None = None) -> Tensor:
        raise RuntimeError("not built with oneDNN")

    monkeypatch.setattr(_Convolution, "forward", fails)
    network = prepared(build_network(StudentConfig(model="resnet_cifar", depth=8), INFO, 28))
    model = network.model
    assert fuse(network, None) is None
    assert network.model is model


def test_with_taps_nothing_is_fused() -> None:
    network = prepared(build_network(StudentConfig(model="resnet_cifar", depth=8), INFO, 28, taps=("stage1",)))
    assert fuse(network, None) is None
    assert network(images()).features[0].shape[1:] == (16, 28, 28)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answered_in_parts_a_row_keeps_its_answer(precision: str) -> None:
    network = build_network(StudentConfig(model="resnet_cifar", depth=20), INFO, 28)
    teacher = NetworkTeacher("t", network, device=torch.device("cpu"), precision=precision)
    at_a_time = teacher._at_a_time
    assert at_a_time == {"fp32": 32, "bf16": 64}[precision]  # 16 maps of 28 x 28 in two MiB
    asked = batch(at_a_time + 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert torch.equal(teacher(asked).logits, teacher._answering(asked.images).logits)


@pytest.mark.parametrize("model", ["mobilenet_v2", "vgg"])
def test_where_calls_cost_more_than_memory_a_batch_is_answered_at_once(model: str) -> None:
    """Small convolutions, and maps of which too few images fit."""
    network = prepared(build_network(StudentConfig.model_validate({"model": model}), INFO, 28))
    assert fuse(network, torch.bfloat16) is None
    assert isinstance(network.model, fx.GraphModule)


@pytest.mark.parametrize("count", [64, 5])  # those that weights are packed for, and the rest of a data set
def test_packed_weights_answer_as_they_do_unpacked(count: int) -> None:
    network = build_network(StudentConfig(model="resnet_cifar", depth=20), INFO, 28)
    packed, loose = prepared(network), prepared(network)
    for net in (packed, loose):
        fuse(net, torch.bfloat16)
    for conv in fused_of(loose):
        conv._packed = None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(images(count)).logits, loose(images(count)).logits)
        assert all(conv._packed is not None and conv._packed.is_mkldnn for conv in fused_of(packed))


def test_in_half_precision_it_is_nearer_to_the_exact_answer() -> None:
    network = build_network(StudentConfig(model="resnet_cifar", depth=56), INFO, 28)
    plain, fused = prepared(network), prepared(network)
    fuse(fused, torch.bfloat16)
    with torch.no_grad():
        exact = prepared(network).double()(images(64)).logits
        with torch.autocast("cpu", torch.bfloat16):
            off, ours = ((net(images(64)).logits.double() - exact).norm() for net in (plain, fused))
    assert ours < off
