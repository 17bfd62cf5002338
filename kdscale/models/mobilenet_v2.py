"""MobileNetV2 for small images: inverted residual blocks with linear ends.

Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018; strides, widths
and plain ReLU as in RepDistiller's mobile_half, the student that the CIFAR-100 literature compares.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["MobileNetV2"]

BIBTEX = """
@inproceedings{sandler2018mobilenetv2,
  author = {Sandler, Mark and Howard, Andrew and Zhu, Menglong and Zhmoginov, Andrey and Chen, Liang-Chieh},
  title = {{MobileNetV2: Inverted Residuals and Linear Bottlenecks}},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2018}
}
"""

# width, blocks, stride of the first; the first group does not expand
GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
STAGES = {"stage1": 1, "stage2": 2, "stage3": 4, "stage4": 6}
"""The last group of each resolution, as tap."""


class MobileNetV2(nn.Module):
    """MobileNetV2 for CIFAR-sized images.

    Its stages end in a BN without ReLU, so stageN and stageN.pre are one and the same.

    Args:
        classes: logits.
        channels: of the images, 1 or 3.
        width: factor of all widths; 0.5 is the literature's "MobileNetV2" on CIFAR.
        expansion: of the inverted residual blocks.

    Raises:
        ValueError: width or expansion leave no channel.
    """

    revision = 1
    renames = (("conv1.", "stem."), ("conv2.", "last."), ("classifier.0.", "head."))

    def __init__(self, *, classes: int, channels: int = 3, width: float = 0.5, expansion: int = 6) -> None:
        super().__init__()
        if width * 16 < 1 or expansion < 1:
            raise ValueError(f"width {width} or expansion {expansion} is too small: some layer would have no channel")
        inward = int(32 * width)
        self.stem = nn.Sequential(*_conv(channels, inward, 3, stride=2), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        for index, (wide, count, stride) in enumerate(GROUPS):
            outward, grown = int(wide * width), expansion if index else 1
            rest = [_Inverted(outward, outward, 1, grown) for _ in range(count - 1)]
            self.blocks.append(nn.Sequential(_Inverted(inward, outward, stride, grown), *rest))
            inward = outward
        end = int(1280 * max(1.0, width))
        self.last = nn.Sequential(*_conv(inward, end, 1), nn.ReLU(inplace=True))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(end, classes)
        self.taps: dict[str, tuple[str, bool]] = {"stem": ("stem", True), "pooled": ("pool", True)}
        for stage, group in STAGES.items():
            self.taps[stage] = self.taps[f"{stage}.pre"] = (f"blocks.{group}", False)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W) to logits (B, C)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.pool(self.last(x)))
        return logits


class _Inverted(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down without ReLU; a shortcut where shapes allow."""

    def __init__(self, inward: int, outward: int, stride: int, expansion: int) -> None:
        super().__init__()
        grown = inward * expansion
        self.conv = nn.Sequential(
            *_conv(inward, grown, 1),
            nn.ReLU(inplace=True),
            *_conv(grown, grown, 3, stride=stride, groups=grown),
            nn.ReLU(inplace=True),
            *_conv(grown, outward, 1),
        )
        self.shortcut = stride == 1 and inward == outward

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


def _conv(inward: int, outward: int, size: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inward, outward, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outward)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # N(0, sqrt(2 / (k k C_out))), also where convolutions are grouped
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2.0 / fan) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
