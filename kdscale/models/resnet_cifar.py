"""Residual networks for small images: three stages of n blocks, depth 6n + 2.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2. Widths with a
stem of its own (resnet8x4, resnet32x4) follow RepDistiller; bottleneck blocks at depth 6n + 2 follow the
official code of ONE (its "resnet110"). Four stages, as in ImageNet's ResNet-18 but behind this stem, are the networks
of "Revisiting Knowledge Distillation via Label Smoothing Regularization" on CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNetCifar"]

BIBTEX = """
@inproceedings{he2016deep,
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  title = {{Deep Residual Learning for Image Recognition}},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2016}
}
"""


class ResNetCifar(nn.Module):
    """Residual network of He et al. for CIFAR-sized images; any size works, by global pooling.

    Args:
        classes: logits.
        channels: of the images, 1 or 3.
        depth: 6n + 2, with n blocks in each of the three stages.
        widths: channels of the stages (the stem takes the first), or of stem and stages.
        shortcut: where shapes change, "A" subsamples and pads with zeros, "B" is a 1x1 convolution with BN.
        block: "basic", or "bottleneck" (1x1, 3x3, 1x1 with four times the stage's width at its end).
        blocks: of each stage, instead of a depth: [2, 2, 2, 2] with widths [64, 128, 256, 512] is ResNet-18.

    Raises:
        ValueError: the depth is not 6n + 2, is given beside blocks, or there are not as many widths as stages.
    """

    revision = 1
    renames = (
        # the names in RepDistiller's and in most other CIFAR networks
        ("conv1.", "stem.0."),
        ("bn1.", "stem.1."),
        ("layer", "stage"),
        ("fc.", "head."),
        ("linear.", "head."),
    )

    def __init__(  # noqa: PLR0913
        self,
        *,
        classes: int,
        channels: int = 3,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: str = "B",
        block: str = "basic",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        counts = [_blocks_per_stage(depth)] * 3 if blocks is None else _own_blocks(blocks, depth)
        stem, *wide = _with_stem(widths, len(counts))
        kind = _KINDS[_one_of("block", block, _KINDS)]
        _one_of("shortcut", shortcut, ("A", "B"))
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        grown = kind.expansion
        self.taps: dict[str, tuple[str, bool]] = {"stem": ("stem", True), "pooled": ("pool", True)}
        inward = stem
        for index, (width, count) in enumerate(zip(wide, counts, strict=True)):
            stage = f"stage{index + 1}"
            self.add_module(stage, _stage(kind, inward, width, count, 2 if index else 1, shortcut))
            self.taps[stage] = (stage, True)
            self.taps[f"{stage}.pre"] = (f"{stage}.{count - 1}.sum", False)
            inward = width * grown
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(inward, classes)
        self._stages = [f"stage{index + 1}" for index in range(len(counts))]
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W) to logits (B, C)."""
        x = self.stem(images)
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.head(self.pool(x))
        return logits


class _Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, inward: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inward, width, stride, shortcut)
        self.sum = nn.Identity()  # names the value before the last ReLU, for taps
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.last_relu(self.sum(out + self.downsample(x)))
        return activated


class _Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width."""

    expansion = 4

    def __init__(self, inward: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inward, width * self.expansion, stride, shortcut)
        self.sum = nn.Identity()
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        activated: Tensor = self.last_relu(self.sum(out + self.downsample(x)))
        return activated


class _ZeroPadded(nn.Module):
    """Option A: subsample in space, pad the new channels with zeros; no parameters."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outward - inward) // 2
        self.after = outward - inward - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


_KINDS: dict[str, type[_Basic | _Bottleneck]] = {"basic": _Basic, "bottleneck": _Bottleneck}


def _blocks_per_stage(depth: int) -> int:
    if depth < 8 or (depth - 2) % 6:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, 32, 44, 56, 110 ...), not {depth}; nearest is {near}")
    return (depth - 2) // 6


def _own_blocks(blocks: Sequence[int], depth: int) -> Sequence[int]:
    if depth != 20:
        raise ValueError(f"blocks {list(blocks)} stand for a depth: leave depth {depth} out")
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks are how many each stage has, 1 or more; got {list(blocks)}")
    return blocks


def _with_stem(widths: Sequence[int], stages: int) -> Sequence[int]:
    if len(widths) not in (stages, stages + 1):
        raise ValueError(f"widths are those of {stages} stages, or of stem and {stages} stages; got {list(widths)}")
    return [widths[0], *widths] if len(widths) == stages else widths


def _one_of(name: str, value: str, known: Sequence[str] | dict[str, type[_Basic | _Bottleneck]]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value}")
    return value


def _stage(
    kind: type[_Basic | _Bottleneck], inward: int, width: int, blocks: int, stride: int, shortcut: str
) -> nn.Sequential:
    grown = width * kind.expansion
    rest = [kind(grown, width, 1, shortcut) for _ in range(blocks - 1)]
    return nn.Sequential(kind(inward, width, stride, shortcut), *rest)


def _shortcut(inward: int, outward: int, stride: int, shortcut: str) -> nn.Module:
    if stride == 1 and inward == outward:
        return nn.Identity()
    if shortcut == "A":
        return _ZeroPadded(inward, outward, stride)
    return nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward))


def _initialise(model: nn.Module) -> None:
    """N(0, sqrt(2 / (k k C_out))) for convolutions, as in He et al. and all four reference codes."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
