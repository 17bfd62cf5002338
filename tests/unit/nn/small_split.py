"""Small networks with a split head, and the whole networks that they come from."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.nn.build import build_network
from kdscale.nn.network import Network
from kdscale.nn.split_head import SplitHead, split_head_of

__all__ = ["SIZE", "head_of", "images", "network"]

SIZE = 16
INFO = DatasetInfo(3, 1, SIZE, 100, 20, (0.5,), (0.25,), tuple("abc"))
SMALL: dict[str, dict[str, Any]] = {
    "resnet_cifar": {"depth": 8, "widths": [4, 4, 8]}, "wrn": {"depth": 10, "widen": 1}, "vgg": {"depth": 8},
}  # fmt: skip


def network(model: str = "resnet_cifar", taps: list[str] | None = None, **options: Any) -> Network:
    """With weights that are a function of its name and options alone."""
    config = StudentConfig(model=model, **{**SMALL.get(model, {}), **options})
    return build_network(config, INFO, SIZE, taps=taps or [])


def head_of(network: Network) -> SplitHead:
    """Its split head."""
    found = split_head_of(network.model)
    assert found is not None
    return found[1]


def images(count: int = 6, seed: int = 0) -> UInt8[Tensor, "B 1 16 16"]:
    """Noise."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=rng)
