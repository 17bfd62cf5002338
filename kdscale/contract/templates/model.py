"""A small convolutional network with named taps. It imports torch only: then an export holds it as modeling.py.

Edit this file, then, from the folder that holds your package:
    python KDSCALE/launch/check.py mine.nets size=32 width=16
    python KDSCALE/launch/sweep.py --list taps mine.nets:SmallNet size=32
    student: {model: "mine.nets:SmallNet", width: 16}    in a stage of a config with
    plugins: {path: [.], allow: [mine]}
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SmallNet"]


class SmallNet(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        classes: logits; the data says how many.
        channels: of the images; the data says how many.
        width: of the first convolution. Arguments of your own are keys beside `model`, each with a default.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stage1 = _block(channels, width)
        self.stage2 = _block(width, 2 * width)
        self.stage3 = _block(2 * width, 4 * width)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(4 * width, classes)
        self.taps = {  # name: (module path, whether its values lie behind a ReLU); any path is a tap without a name too
            "stage1": ("stage1", True), "stage2": ("stage2", True), "stage3": ("stage3", True),
            "pooled": ("pool", True),
        }  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W), resized and normalised, to logits (B, classes)."""
        logits: Tensor = self.head(self.pool(self.stage3(self.stage2(self.stage1(images)))))
        return logits


def _block(inward: int, outward: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outward), nn.ReLU()
    )  # fmt: skip
