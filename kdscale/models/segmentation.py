"""A small network for semantic segmentation: a dilated residual encoder and a light head, a class for each pixel.

Source: the encoder's blocks are those of He et al., "Deep residual learning for image recognition", CVPR 2016, section
4.2; dilation in the place of stride from Chen et al., "DeepLab", arXiv:1606.00915, section 3.1. Three stages and a stem
as in the networks for CIFAR; the head is a 1x1 layer and a 1x1 classifier, enlarged bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SegmentationResNet"]

BIBTEX = """
@inproceedings{he2016deep,
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  title = {{Deep Residual Learning for Image Recognition}},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2016}
}
@article{chen2018deeplab,
  author = {Chen, Liang-Chieh and Papandreou, George and Kokkinos, Iasonas and Murphy, Kevin and Yuille, Alan L.},
  title = {{DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
    Connected CRFs}},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year = {2018},
  eprint = {1606.00915},
  archivePrefix = {arXiv}
}
"""


class SegmentationResNet(nn.Module):
    """Residual encoder of depth 6n + 2 with dilation, and a light head: logits of the images' size.

    Args:
        classes: logits of each pixel.
        channels: of the images, 1 or 3.
        depth: 6n + 2, with n blocks in each of the three stages.
        widths: channels of the three stages; the stem takes the first.
        output_stride: pixels of the image to one of the last map: 2, 4, 8, 16 or 32. Stem and stages halve the map in
            their order as often as that takes, 32 with a pooling behind the stem; a stage that does not halve it has
            twice the dilation.

    Raises:
        ValueError: an argument is none of these.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        depth: int = 20,
        widths: Sequence[int] = (32, 64, 128),
        output_stride: int = 8,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26 ...), not {depth}")
        if len(widths) != 3:
            raise ValueError(f"widths are those of three stages; got {list(widths)}")
        if output_stride not in _HALVINGS:
            raise ValueError(f"output_stride must be one of {', '.join(map(str, _HALVINGS))}, not {output_stride}")
        blocks, halvings = (depth - 2) // 6, _HALVINGS[output_stride]
        pool = [nn.MaxPool2d(2)] if halvings == 5 else []
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(), *pool
        )
        self.taps: dict[str, tuple[str, bool]] = {"stem": ("stem", True)}
        inward, dilation = widths[0], 1
        for number, width in enumerate(widths, 1):
            stride = 2 if number < halvings else 1
            dilation *= 1 if stride == 2 else 2
            name = f"stage{number}"
            first = _Block(inward, width, stride, dilation)
            rest = [_Block(width, width, 1, dilation) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            self.taps |= {name: (name, True), f"{name}.pre": (f"{name}.{blocks - 1}.sum", False)}
            inward = width
        self.neck = nn.Sequential(nn.Conv2d(inward, inward, 1, bias=False), nn.BatchNorm2d(inward), nn.ReLU())
        self.head = nn.Conv2d(inward, classes, 1)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W) to logits (B, C, H, W)."""
        x = self.stem(images)
        for name in ("stage1", "stage2", "stage3"):
            x = self.get_submodule(name)(x)
        small = self.head(self.neck(x))
        return F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)


_HALVINGS = {2: 1, 4: 2, 8: 3, 16: 4, 32: 5}


class _Block(nn.Module):
    """Two dilated 3x3 convolutions around a shortcut."""

    def __init__(self, inward: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inward, width, stride)
        self.sum = nn.Identity()  # names the value before the last ReLU, for taps
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.last_relu(self.sum(out + self.downsample(x)))
        return activated


def _shortcut(inward: int, outward: int, stride: int) -> nn.Module:
    if stride == 1 and inward == outward:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward))


def _initialise(model: nn.Module) -> None:
    """N(0, sqrt(2 / (k k C_out))) for convolutions, as in He et al."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
