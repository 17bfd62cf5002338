"""VGG networks for small images: five blocks of 3x3 convolutions with BN, one linear layer.

Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015; the CIFAR form (vgg8 to vgg19 with BN and a single linear layer) as in RepDistiller.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["Vgg"]

BIBTEX = """
@inproceedings{simonyan2015very,
  author = {Simonyan, Karen and Zisserman, Andrew},
  title = {{Very Deep Convolutional Networks for Large-Scale Image Recognition}},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year = {2015}
}
"""

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class Vgg(nn.Module):
    """VGG for CIFAR-sized images; its first block is the tap `stem`, the other four are stage1 to stage4.

    Args:
        classes: logits.
        channels: of the images, 1 or 3.
        depth: 8, 11, 13, 16 or 19.

    Raises:
        ValueError: there is no such depth.
    """

    revision = 1
    renames = (
        ("block0.", "stem."),
        ("block1.", "stage1."),
        ("block2.", "stage2."),
        ("block3.", "stage3."),
        ("block4.", "stage4."),
        ("classifier.", "head."),
    )

    def __init__(self, *, classes: int, channels: int = 3, depth: int = 8) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}, not {depth}")
        inward = (channels, *WIDTHS[:-1])
        blocks = [_block(i, o, n) for i, o, n in zip(inward, WIDTHS, CONVOLUTIONS[depth], strict=True)]
        self.stem, self.stage1, self.stage2, self.stage3, self.stage4 = blocks
        self.relus = nn.ModuleList(nn.ReLU() for _ in WIDTHS)  # out of place: their inputs are taps
        self.halve = nn.MaxPool2d(2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(WIDTHS[-1], classes)
        self.taps: dict[str, tuple[str, bool]] = {"stem": ("relus.0", True), "pooled": ("pool", True)}
        for stage in range(1, 5):
            self.taps[f"stage{stage}"] = (f"relus.{stage}", True)
            self.taps[f"stage{stage}.pre"] = (f"stage{stage}", False)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W), of at least 8 pixels a side, to logits (B, C)."""
        x = self.relus[0](self.stem(images))
        x = self.relus[1](self.stage1(self.halve(x)))
        x = self.relus[2](self.stage2(self.halve(x)))
        x = self.relus[3](self.stage3(self.halve(x)))
        x = self.relus[4](self.stage4(_halved_if_large(x)))
        logits: Tensor = self.head(self.pool(x))
        return logits


@fx.wrap  # a graph of the network keeps it whole: what it decides by is not known before there are images
def _halved_if_large(x: Tensor) -> Tensor:
    """Maps of images of 64 pixels and more are pooled once more."""
    return F.max_pool2d(x, 2) if x.shape[-1] >= 8 else x


def _block(inward: int, outward: int, convolutions: int) -> nn.Sequential:
    """Convolutions with BN and ReLU, without the last ReLU."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        conv = nn.Conv2d(inward if index == 0 else outward, outward, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(outward), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
