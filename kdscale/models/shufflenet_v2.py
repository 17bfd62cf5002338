"""ShuffleNetV2 for small images: split, transform one half, concatenate, shuffle.

Source: Ma et al., "ShuffleNet V2: practical guidelines for efficient CNN architecture design", ECCV 2018;
1x1 stem and no first pooling as in RepDistiller's ShuffleV2, the student of the CIFAR-100 literature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ShuffleNetV2"]

BIBTEX = """
@inproceedings{ma2018shufflenet,
  author = {Ma, Ningning and Zhang, Xiangyu and Zheng, Hai-Tao and Sun, Jian},
  title = {{ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design}},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2018}
}
"""

WIDTHS: dict[float, tuple[int, int, int, int]] = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (224, 488, 976, 2048),
}
BLOCKS = (3, 7, 3)
STEM = 24


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 for CIFAR-sized images; any size works, by global pooling.

    Args:
        classes: logits.
        channels: of the images, 1 or 3.
        width: 0.5, 1, 1.5 or 2.

    Raises:
        ValueError: there is no such width.
    """

    revision = 1
    renames = (
        ("conv1.", "stem.0."),
        ("bn1.", "stem.1."),
        ("layer", "stage"),
        ("conv2.", "last.0."),
        ("bn2.", "last.1."),
        ("linear.", "head."),
    )

    def __init__(self, *, classes: int, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if width not in WIDTHS:
            raise ValueError(f"width must be one of {', '.join(map(str, WIDTHS))}, not {width}")
        first, second, third, end = WIDTHS[width]
        self.stem = _relu(_conv(channels, STEM, 1))
        self.stage1 = _stage(STEM, first, BLOCKS[0])
        self.stage2 = _stage(first, second, BLOCKS[1])
        self.stage3 = _stage(second, third, BLOCKS[2])
        self.last = _relu(_conv(third, end, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(end, classes)
        self.taps: dict[str, tuple[str, bool]] = {"stem": ("stem", True), "pooled": ("pool", True)}
        for stage, blocks in enumerate(BLOCKS, start=1):
            self.taps[f"stage{stage}"] = (f"stage{stage}", True)
            self.taps[f"stage{stage}.pre"] = (f"stage{stage}.{blocks}.shuffle", False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W) to logits (B, C)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.head(self.pool(self.last(x)))
        return logits


class _Shuffle(nn.Module):
    """Interleave the two halves of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        shuffled: Tensor = torch.unflatten(x, 1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return shuffled


class _Basic(nn.Module):
    """One half passes, the other goes through 1x1, depthwise 3x3, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = _conv(half, half, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(half, half, 3, groups=half)
        self.conv3, self.bn3 = _conv(half, half, 1)
        self.shuffle = _Shuffle()
        self.last_relu = nn.ReLU()  # out of place: its input is a tap

    def forward(self, x: Tensor) -> Tensor:
        passing, changing = x.chunk(2, dim=1)
        out = self.relu(self.bn1(self.conv1(changing)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        # The passing half lies behind a ReLU already, so one ReLU over both changes nothing in it, and the
        # tap before it holds all channels in the order of the tap behind it.
        activated: Tensor = self.last_relu(self.shuffle(torch.cat([passing, out], dim=1)))
        return activated


class _Down(nn.Module):
    """Two branches of stride 2, concatenated."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        half = outward // 2
        self.conv1, self.bn1 = _conv(inward, inward, 3, stride=2, groups=inward)
        self.conv2, self.bn2 = _conv(inward, half, 1)
        self.conv3, self.bn3 = _conv(inward, half, 1)
        self.conv4, self.bn4 = _conv(half, half, 3, stride=2, groups=half)
        self.conv5, self.bn5 = _conv(half, half, 1)
        self.relu = nn.ReLU(inplace=True)
        self.shuffle = _Shuffle()

    def forward(self, x: Tensor) -> Tensor:
        left = self.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.relu(self.bn3(self.conv3(x)))
        right = self.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        shuffled: Tensor = self.shuffle(torch.cat([left, right], dim=1))
        return shuffled


def _stage(inward: int, outward: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Down(inward, outward), *(_Basic(outward) for _ in range(blocks)))


def _conv(inward: int, outward: int, size: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inward, outward, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outward)


def _relu(layers: tuple[nn.Module, nn.Module]) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(inplace=True))
