"""The two networks of benchmarks/gpu.py; of kdscale they have the model alone, whose file knows torch."""

from __future__ import annotations

from torch import nn

from kdscale.models.resnet_cifar import ResNetCifar

WIDTHS = (64, 128, 256, 512)


class ResNet18(ResNetCifar):
    """ResNet-18 behind a stem for 32 pixels, as papers on CIFAR have it."""

    def __init__(self, classes: int = 100, channels: int = 3) -> None:
        super().__init__(classes=classes, channels=channels, blocks=(2, 2, 2, 2), widths=WIDTHS)


class ResNet50(ResNetCifar):
    """ResNet-50 for 224 pixels: He et al., CVPR 2016, table 1, with the stride in the 3x3 convolutions (v1.5)."""

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__(classes=classes, channels=channels, blocks=(3, 4, 6, 3), widths=WIDTHS, block="bottleneck")
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
