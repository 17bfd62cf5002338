"""Residual networks: published parameter counts catch every mistake in widths and shortcuts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale.models.resnet_cifar import ResNetCifar

# depth: parameters for (10 classes, B), (100, B), (10, A), (100, A)
COUNTS = {
    8: (78_042, 83_892, 75_290, 81_140),
    14: (175_258, 181_108, 172_506, 178_356),
    20: (272_474, 278_324, 269_722, 275_572),
    26: (369_690, 375_540, 366_938, 372_788),
    32: (466_906, 472_756, 464_154, 470_004),
    44: (661_338, 667_188, 658_586, 664_436),
    56: (855_770, 861_620, 853_018, 858_868),
    110: (1_730_714, 1_736_564, 1_727_962, 1_733_812),
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def meta(**arguments: object) -> ResNetCifar:
    with torch.device("meta"):
        return ResNetCifar(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", COUNTS)
def test_has_the_published_number_of_parameters(depth: int) -> None:
    found = tuple(parameters(meta(classes=c, depth=depth, shortcut=s)) for s in "BA" for c in (10, 100))
    assert found == COUNTS[depth]


def test_bottlenecks_give_the_resnet110_of_one() -> None:
    assert parameters(meta(classes=100, depth=110, block="bottleneck")) == 1_727_284


@pytest.mark.parametrize(("depth", "count"), [(8, 1_233_540), (32, 7_433_860)])
def test_a_stem_of_its_own_width_gives_resnet_x4(depth: int, count: int) -> None:
    assert parameters(meta(classes=100, depth=depth, widths=[32, 64, 128, 256])) == count


@pytest.mark.parametrize(
    ("blocks", "block", "count"), [([2, 2, 2, 2], "basic", 11_220_132), ([3, 4, 6, 3], "bottleneck", 23_705_252)]
)
def test_four_stages_give_resnet18_and_50_for_small_images(blocks: list[int], block: str, count: int) -> None:
    widths = [64, 128, 256, 512] if block == "basic" else [64, 64, 128, 256, 512]
    model = meta(classes=100, blocks=blocks, widths=widths, block=block)
    assert parameters(model) == count
    assert {"stage4", "stage4.pre"} <= model.taps.keys()
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 100)


def test_blocks_are_a_depth_said_in_another_way() -> None:
    networks = []
    for arguments in ({"depth": 14}, {"blocks": [2, 2, 2]}):
        torch.manual_seed(0)
        networks.append(ResNetCifar(classes=10, **arguments))  # type: ignore[arg-type]
    first, second = (network.state_dict() for network in networks)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 45])
def test_takes_grey_and_colour_of_any_size(channels: int, size: int) -> None:
    assert ResNetCifar(classes=7, channels=channels, depth=8)(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_option_a_is_the_identity_beside_zeros() -> None:
    model = ResNetCifar(classes=2, depth=8, shortcut="A")
    x = torch.arange(2.0 * 16 * 8 * 8).view(2, 16, 8, 8)
    y = model.stage2[0].downsample(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() + y[:, 24:].abs().sum() == 0


def test_convolutions_start_at_the_scale_of_he_et_al() -> None:
    torch.manual_seed(0)
    weight = ResNetCifar(classes=10, depth=20).stage3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 21}, "nearest is 20"),
        ({"depth": 2}, "nearest is 8"),
        ({"widths": [16, 32]}, "3 stages"),
        ({"blocks": [2, 2, 2, 2]}, "4 stages, or of stem and 4 stages"),
        ({"blocks": [2, 0, 2]}, "1 or more"),
        ({"blocks": []}, "1 or more"),
        ({"blocks": [2, 2, 2], "depth": 14}, "leave depth 14 out"),
        ({"shortcut": "C"}, "A, B"),
        ({"block": "wide"}, "basic, bottleneck"),
    ],
)
def test_refuses_what_is_no_such_network(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        meta(classes=10, **arguments)
