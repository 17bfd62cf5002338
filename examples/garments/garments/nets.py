"""A small network for small pictures. It imports torch only, so that an export can hold it."""

from __future__ import annotations

from torch import Tensor, nn


class GarmentNet(nn.Module):
    """Separable convolutions.

    Args:
        classes: logits; the data says how many.
        channels: of the images; the data says how many.
        width: of the first stage; the second has twice as many channels.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(separable(width, 2 * width, stride=2), separable(2 * width, 2 * width, stride=1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(2 * width, classes)
        # names for what terms compare: module path, and whether the values lie behind a ReLU
        self.taps = {"early": ("stem", True), "late": ("body", True), "pooled": ("pool", True)}

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W) to logits (B, classes)."""
        logits: Tensor = self.head(self.pool(self.body(self.stem(images))))
        return logits


def separable(inward: int, outward: int, *, stride: int) -> nn.Sequential:
    """A convolution over space, one over channels, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inward, inward, 3, stride, 1, groups=inward, bias=False),
        nn.Conv2d(inward, outward, 1, bias=False), nn.BatchNorm2d(outward), nn.ReLU(),
    )  # fmt: skip
