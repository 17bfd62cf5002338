"""A small head with a narrow place in its middle, which stands for the first modules of another network.

Source: Matsubara, Baidya, Callegaro, Levorato, Singh, "Distilled Split Deep Neural Networks for Edge-Assisted Real-Time
Systems", arXiv:1910.00643; Matsubara et al., "Head Network Distillation", IEEE Access 2020.
Deviation: theirs are designed network by network; this one is made from the shapes alone. Its BatchNorm lies before the
bytes, which keeps their range steady, and no ReLU does, which would spend half of it on one value.
"""

from __future__ import annotations

import copy
import math

from jaxtyping import Float
from torch import Tensor, nn

from kdscale.config.schema import SplitHeadConfig
from kdscale.errors import ShapeError, TapError
from kdscale.nn.cut import behind, check_cut, shape_at, up_to
from kdscale.nn.network import Network
from kdscale.nn.wire import Wire

__all__ = ["SplitHead", "check_taps", "splice", "split_head_of"]

MapShape = tuple[int, int, int]


class SplitHead(nn.Module):
    """Encoder, wire, decoder: from images to the feature of the modules that it stands for.

    It runs where the last of those ran, on the images that its network was given: in between may be what has no
    weights, such as a pooling that other places use too.

    Args:
        config: how narrow it is.
        images: shape of the network's images, without B.
        feature: shape of what it gives, without B.
        relu: whether that lies behind a ReLU.
        replaced: paths of the modules that it stands for.

    Raises:
        ShapeError: the sizes cannot be reached by halving and whole enlarging.
    """

    def __init__(
        self, config: SplitHeadConfig, images: MapShape, feature: MapShape, *, relu: bool, replaced: set[str]
    ) -> None:
        super().__init__()
        narrow, side = config.channels, config.size or feature[1]
        width = config.width or feature[0]
        halvings, enlarged = _sizes(images, feature, side)
        self.replaced = frozenset(replaced)
        self.shape: MapShape = (narrow, side, side)
        """Of what is sent, without B."""
        self.encoder = nn.Sequential(
            *_conv(images[0], width), *(layer for _ in range(halvings) for layer in _conv(width, width, stride=2)),
            *_conv(width, narrow, relu=False),
        )  # fmt: skip
        self.wire = Wire()
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(narrow, width, enlarged, stride=enlarged, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            *_conv(width, width), *_conv(width, feature[0], relu=relu),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._images: Tensor | None = None

    def forward(self, _: Tensor) -> Float[Tensor, "B K H W"]:
        """Return the feature. Raises: ShapeError when its network was not run from the images on."""
        if self._images is None:
            raise ShapeError("a split head answers within its network, which hands it the images")
        images, self._images = self._images, None
        decoded: Tensor = self.decoder(self.wire(self.encoder(images)))
        return decoded

    def take_images(self, model: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Remember, as a hook before the network's forward pass, what it was given."""
        del model
        self._images = given[0]


def splice(network: Network, config: SplitHeadConfig, *, check: bool = True) -> None:
    """Put a split head in the place of a network's first modules, in place; the others keep their names and weights.

    Args:
        network: read by no other taps than those of its model.
        config: where, and how narrow.
        check: whether to make sure that all goes through that place; needs real numbers.

    Raises:
        TapError: there is no such module.
        ConfigError: what follows reads something else too.
        ShapeError: the feature is no square map, or cannot be reached.
    """
    size, split = network.input.given_size, config.split_at
    feature = _feature(network, split)
    if check:
        check_cut(copy.deepcopy(network), split, size)
    path, gone = up_to(network, split, size)
    seen = network.input
    head = SplitHead(
        config, (seen.channels, seen.size, seen.size), feature, relu=network.post_relu(split), replaced=gone
    )
    model = behind(network, split, size, head).model
    taps: dict[str, tuple[str, bool]] = getattr(model, "taps", {})
    if taps:
        left = {name: tap for name, tap in taps.items() if tap[0] == path or tap[0] not in gone}
        model.taps = left  # type: ignore[assignment]
    model.register_forward_pre_hook(head.take_images)


def split_head_of(model: nn.Module) -> tuple[str, SplitHead] | None:
    """The split head of a network's model and its path; None where it has none."""
    return next(((path, part) for path, part in model.named_modules() if isinstance(part, SplitHead)), None)


def check_taps(network: Network) -> None:
    """Refuse to read a module that a split head stands for. Raises: TapError."""
    path, head = split_head_of(network.model) or ("", None)
    for catch in network.catches:
        if head is not None and catch.path != path and catch.path in head.replaced:
            said = f"is gone: the split head stands for all up to {path}; tap that, or what follows"
            raise TapError(f"tap {catch.tap} ({catch.path}) {said}", catch.tap)


def _feature(network: Network, split: str) -> MapShape:
    """Shape of what a module gives, which must be a square map."""
    shape = shape_at(network, split)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ShapeError(f"split_at: {split} gives {list(shape)}; a split head restores square maps [K, H, H]")
    return shape


def _conv(inward: int, outward: int, *, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    activation: list[nn.Module] = [nn.ReLU()] if relu else []
    return [nn.Conv2d(inward, outward, 3, stride, 1, bias=False), nn.BatchNorm2d(outward), *activation]


def _sizes(images: MapShape, feature: MapShape, side: int) -> tuple[int, int]:
    """How often the images are halved down to the wire, and by how much that is enlarged."""
    reached = [images[1]]
    while reached[-1] > 1:
        reached.append(math.ceil(reached[-1] / 2))
    if side not in reached or feature[1] % side:
        able = ", ".join(str(one) for one in reached if feature[1] % one == 0)
        raise ShapeError(
            f"size: {side} is no half, quarter ... of the {images[1]} pixels a side of which "
            f"{feature[1]} at {list(feature)} is a multiple; set it to one of {able}"
        )
    return reached.index(side), feature[1] // side
