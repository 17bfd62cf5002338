"""What a network wants to see, made from the loader's one uint8 view, on the network's own device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

__all__ = ["NetworkInput"]

# ITU-R BT.601: the weights of every common RGB to grey conversion.
_GREY = (0.299, 0.587, 0.114)


class NetworkInput(nn.Module):
    """Converts channels, resizes and normalises images of one data set for one network.

    Its constants are buffers made once (they follow the network to its device) and are no part of a
    state_dict: an exported network is the bare model.

    Args:
        given: channels of the loader's images.
        given_size: their pixels a side.
        channels: what the network wants, 1 or 3.
        size: pixels a side that the network wants.
        mean: per channel of the network, of pixels in [0, 1].
        std: likewise.
    """

    scale: Tensor
    shift: Tensor
    grey: Tensor

    def __init__(
        self, *, given: int, given_size: int, channels: int, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.given = given
        self.given_size = given_size
        self.channels = channels
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.layout = torch.contiguous_format
        # (x / 255 - mean) / std as one multiply and one add
        scale = [1.0 / (255.0 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self.register_buffer("scale", _per_channel(scale), persistent=False)
        self.register_buffer("shift", _per_channel(shift), persistent=False)
        self.register_buffer("grey", _per_channel(_GREY), persistent=False)

    def forward(self, images: UInt8[Tensor, "B K H W"] | Float[Tensor, "B K H W"]) -> Float[Tensor, "B K2 H2 W2"]:
        """Normalise images in [0, 255]: those of the loader, or fresh floats, which may be overwritten."""
        pixels = self._pixels(images)
        if self.given < self.channels:  # one channel shown as three: the multiplication repeats it
            return pixels.mul(self.scale).add_(self.shift)
        return pixels.mul_(self.scale).add_(self.shift)

    def seen(self, images: UInt8[Tensor, "B K H W"]) -> Float[Tensor, "B K2 H2 W2"]:
        """What the network sees, in [0, 1], before normalisation: for people to look at."""
        pixels = self._pixels(images).div_(255.0).clamp_(0.0, 1.0)
        return pixels.expand(-1, self.channels, -1, -1) if self.given < self.channels else pixels

    def describe(self) -> str:
        """One phrase for tables, such as "224 px, 3 channels, mean 0.5"."""
        mean = " ".join(f"{m:.3g}" for m in (self.mean if len(set(self.mean)) > 1 else self.mean[:1]))
        return f"{self.size} px, {self.channels} channel{'s' if self.channels > 1 else ''}, mean {mean}"

    def _pixels(self, images: Tensor) -> Tensor:
        """Float pixels in [0, 255] in the network's size; a fresh tensor, which callers may overwrite."""
        pixels = images.to(self.scale.dtype, memory_format=self.layout)
        if self.given > self.channels:
            pixels = (pixels * self.grey).sum(dim=1, keepdim=True)
        if pixels.shape[-1] != self.size or pixels.shape[-2] != self.size:
            side = (self.size, self.size)
            pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True, align_corners=False)
        return pixels


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
