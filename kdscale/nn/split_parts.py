"""A network with a split head as the two modules that are deployed: one on a device, one on a server."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kdscale.errors import ConfigError
from kdscale.nn.cut import Handed
from kdscale.nn.network import Network
from kdscale.nn.split_head import SplitHead, split_head_of

__all__ = ["DevicePart", "ServerPart", "split_parts", "wire_cost"]


class DevicePart(nn.Module):
    """From images as the loader yields them to the bytes that are sent."""

    def __init__(self, network: Network, head: SplitHead) -> None:
        super().__init__()
        self.input, self.encoder, self.wire = network.input, head.encoder, head.wire

    def forward(self, images: UInt8[Tensor, "B K H W"]) -> UInt8[Tensor, "B c h w"]:
        """Return what a sample sends, a byte a value."""
        return self.wire.write(self.encoder(self.input(images)))


class ServerPart(nn.Module):
    """From the bytes that a device sent to logits; `tail` is the network without its head."""

    def __init__(self, network: Network, path: str, head: SplitHead) -> None:
        super().__init__()
        self.wire, self.decoder = head.wire, head.decoder
        self._handed = Handed()
        model = network.model
        for key, hook in [*model._forward_pre_hooks.items()]:
            if getattr(hook, "__self__", None) is head:
                del model._forward_pre_hooks[key]
        model.set_submodule(path, self._handed)
        classes = None if network.class_map is None else network.class_map.tolist()
        self.tail = Network(model, network.input, class_map=classes)

    def forward(self, sent: UInt8[Tensor, "B c h w"]) -> Float[Tensor, "B C"]:
        """Return the logits."""
        seen = self.tail.input
        blank = sent.new_zeros(sent.shape[0], seen.given, seen.given_size, seen.given_size, dtype=torch.uint8)
        with self._handed.over(self.decoder(self.wire.read(sent))):
            logits: Tensor = self.tail(blank).logits
        return logits


def split_parts(network: Network) -> tuple[DevicePart, ServerPart]:
    """Split a trained network into its two parts, as copies in evaluation; composed, they answer as it does.

    Neither holds anything of the other's but the wire's range: their state_dicts are what each machine needs.

    Raises:
        ConfigError: the network has no split head.
    """
    device, server = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    parts = split_head_of(device.model), split_head_of(server.model)
    if parts[0] is None or parts[1] is None:
        raise ConfigError("student: has no split_head, so there is nothing to split: set student.split_head")
    return DevicePart(device, parts[0][1]).eval(), ServerPart(server, *parts[1]).eval()


def wire_cost(network: Network) -> dict[str, int] | None:
    """Bytes that one sample sends, beside those of its image as the loader yields it; None without a split head."""
    found = split_head_of(network.model)
    if found is None:
        return None
    channels, height, width = found[1].shape
    seen = network.input
    return {"bytes": channels * height * width, "input_bytes": seen.given * seen.given_size**2}
