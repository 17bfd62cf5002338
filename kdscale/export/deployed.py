"""A network as it is deployed: pictures in, as they were stored; logits out, and all that lies between inside."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kdscale.nn.network import Network
from kdscale.nn.split_head import split_head_of
from kdscale.nn.split_parts import split_parts

__all__ = ["Deployed", "Part", "describe", "parts_of"]


class Deployed(nn.Module):
    """From uint8 images to logits: the size that the network wants, its normalisation and its classes' order inside."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: UInt8[Tensor, "B K H W"]) -> Float[Tensor, "B C *pixels"]:
        """Answer images of the stored size, in [0, 255]."""
        logits: Tensor = self.network(images).logits.float()
        return logits


@dataclass(frozen=True)
class Part:
    """One module that is deployed by itself."""

    name: str
    """Of its files, such as `model` or `device`."""
    module: nn.Module
    example: Tensor
    """An input of batch 2."""
    input: str
    output: str


def parts_of(network: Network) -> list[Part]:
    """What is deployed of a network in evaluation, as copies: all of it, and a split head's two sides besides.

    Args:
        network: with its weights, without taps.
    """
    whole = copy.deepcopy(network).eval().requires_grad_(requires_grad=False).prepare(channels_last=False, device="cpu")
    seen = whole.input
    example = torch.zeros(2, seen.given, seen.given_size, seen.given_size, dtype=torch.uint8)
    found = [Part("model", Deployed(whole), example, "images", "logits")]
    if split_head_of(whole.model) is not None:
        device, server = split_parts(whole)
        with torch.no_grad():
            sent = device(example)
        found += [Part("device", device, example, "images", "sent"), Part("server", server, sent, "sent", "logits")]
    return found


def describe(network: Network) -> dict[str, Any]:
    """The input as model.json holds it."""
    seen = network.input
    return {
        "dtype": "uint8", "layout": "NCHW", "channels": seen.given, "size": seen.given_size,
        "inside": {
            "channels": seen.channels, "size": seen.size, "mean": list(seen.mean), "std": list(seen.std),
            "resize": "bilinear, antialiased", "of": "pixels / 255",
        },
    }  # fmt: skip
