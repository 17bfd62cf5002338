"""Wide residual networks: pre-activation blocks, depth 6n + 4.

Source: Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016; details (1x1 shortcut without BN,
initial weights) as in RepDistiller, whose wrn_40_2, wrn_16_2 and wrn_40_1 the literature compares.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["WideResNet"]

BIBTEX = """
@inproceedings{zagoruyko2016wide,
  author = {Zagoruyko, Sergey and Komodakis, Nikos},
  title = {{Wide Residual Networks}},
  booktitle = {British Machine Vision Conference (BMVC)},
  year = {2016}
}
"""


class WideResNet(nn.Module):
    """Wide residual network for CIFAR-sized images; any size works, by global pooling.

    Its stages end in a sum without BN or ReLU: the taps stage1 to stage3 are such sums, and stageN.pre is
    the BN that reads them, before its ReLU.

    Args:
        classes: logits.
        channels: of the images, 1 or 3.
        depth: 6n + 4, with n blocks in each of the three stages.
        widen: factor of the widths 16, 32 and 64.
        dropout: share of activations dropped between a block's convolutions.

    Raises:
        ValueError: the depth is not 6n + 4.
    """

    revision = 1
    renames = (("conv1.", "stem."), ("bn1.", "last.0."), ("block", "stage"), ("fc.", "head."))

    def __init__(
        self, *, classes: int, channels: int = 3, depth: int = 16, widen: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            near = max(10, 6 * round((depth - 4) / 6) + 4)
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, 40 ...), not {depth}; nearest is {near}")
        blocks = (depth - 4) // 6
        first, second, third = (width * widen for width in (16, 32, 64))
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stage1 = _Stage(16, first, blocks, 1, dropout)
        self.stage2 = _Stage(first, second, blocks, 2, dropout)
        self.stage3 = _Stage(second, third, blocks, 2, dropout)
        self.last = nn.Sequential(nn.BatchNorm2d(third), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Linear(third, classes)
        self.taps: dict[str, tuple[str, bool]] = {
            "stem": ("stem", False),
            "stage1": ("stage1", False),
            "stage1.pre": ("stage2.layer.0.bn1", False),
            "stage2": ("stage2", False),
            "stage2.pre": ("stage3.layer.0.bn1", False),
            "stage3": ("stage3", False),
            "stage3.pre": ("last.0", False),
            "pooled": ("pool", True),
        }
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, H, W) to logits (B, C)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.head(self.pool(self.last(x)))
        return logits


class _Block(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, dropout, 3x3; where the width changes, the shortcut reads behind the first ReLU."""

    def __init__(self, inward: int, outward: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inward)
        self.relu1 = nn.ReLU()  # out of place: its input is a tap
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        widens = inward != outward
        self.convShortcut = nn.Conv2d(inward, outward, 1, stride, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        out = self.dropout(self.relu2(self.bn2(self.conv1(activated))))
        total: Tensor = self.conv2(out) + (x if self.convShortcut is None else self.convShortcut(activated))
        return total


class _Stage(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, inward: int, outward: int, blocks: int, stride: int, dropout: float) -> None:
        super().__init__()
        rest = [_Block(outward, outward, 1, dropout) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(_Block(inward, outward, stride, dropout), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
