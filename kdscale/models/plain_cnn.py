"""Plain convolutional networks of 2 to 10 layers, without shortcuts.

Source: Mirzadeh et al., "Improved knowledge distillation via teacher assistant", AAAI 2020, arXiv:1902.03393; the
layers are those of the authors' code ("plane2" to "plane10"), which has one list for CIFAR-10 and one for CIFAR-100.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["PlainCnn"]

BIBTEX = """
@inproceedings{mirzadeh2020improved,
  author = {Mirzadeh, Seyed Iman and Farajtabar, Mehrdad and Li, Ang and Levine, Nir and Matsukawa, Akihiro and
    Ghasemzadeh, Hassan},
  title = {{Improved Knowledge Distillation via Teacher Assistant}},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year = {2020},
  eprint = {1902.03393},
  archivePrefix = {arXiv}
}
"""

# A number is a 3x3 convolution of that width with BN and ReLU, P halves the resolution, FCn is a hidden layer.
BOOKS: dict[str, dict[int, str]] = {
    "cifar10": {
        2: "16 P 16 P",
        4: "16 16 P 32 32 P",
        6: "16 16 P 32 32 P 64 64 P",
        8: "16 16 P 32 32 P 64 64 P 128 128 P FC64",
        10: "32 32 P 64 64 P 128 128 P 256 256 256 256 P FC128",
    },
    "cifar100": {
        2: "32 P 32 P",
        4: "32 32 P 64 64 P",
        6: "32 32 P 64 64 P 128 128",
        8: "32 32 P 64 64 P 128 128 P 256 256 P FC64",
        10: "32 32 P 64 64 P 128 128 P 256 256 256 256 P FC512",
    },
}


class PlainCnn(nn.Module):
    """Plain network of TAKD, for images of one fixed size.

    Args:
        classes: logits.
        channels: of the images, 1 or 3.
        depth: 2, 4, 6, 8 or 10 convolutional layers.
        book: whose widths: the authors' networks for CIFAR-10 or for CIFAR-100.
        layers: own layers in the same words, such as "16 P 32 P FC64"; then depth and book count for nothing.
        size: pixels a side of the images, which the first linear layer depends on.

    Raises:
        ValueError: there is no such depth, a word is unknown, or the images are halved to nothing.
    """

    revision = 1

    def __init__(
        self,
        *,
        classes: int,
        channels: int = 3,
        depth: int = 2,
        book: str = "cifar10",
        layers: str = "",
        size: int = 32,
    ) -> None:
        super().__init__()
        stages, hidden = _parse(layers or _in_book(book, depth))
        self.stages = nn.ModuleList()
        self.halve = nn.MaxPool2d(2)
        self.taps: dict[str, tuple[str, bool]] = {"stem": ("stages.0.0", True)}
        width = channels
        for number, (widths, halves) in enumerate(stages, start=1):
            self.stages.append(_stage(width, widths))
            self.taps[f"stage{number}"] = (f"stages.{number - 1}", True)
            self.taps[f"stage{number}.pre"] = (f"stages.{number - 1}.{len(widths) - 1}.bn", False)
            width, size = widths[-1], size // 2 if halves else size
        if size < 1:
            raise ValueError(f"the images are halved {len(stages)} times, to nothing: fewer P, or a larger input.size")
        self.halves = [halves for _, halves in stages]
        self.pool = nn.Flatten(1)
        self.hidden = _hidden(width * size * size, hidden)
        self.head = nn.Linear(hidden[-1] if hidden else width * size * size, classes)
        self.taps["pooled"] = ("hidden" if hidden else "pool", True)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, K, size, size) to logits (B, C)."""
        x = images
        for stage, halves in zip(self.stages, self.halves, strict=True):
            x = self.halve(stage(x)) if halves else stage(x)
        logits: Tensor = self.head(self.hidden(self.pool(x)))
        return logits


class _Layer(nn.Module):
    """3x3 convolution, BN, ReLU."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inward, outward, 3, padding=1)
        self.bn = nn.BatchNorm2d(outward)
        self.relu = nn.ReLU()  # out of place: its input is a tap

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


def _in_book(book: str, depth: int) -> str:
    if book not in BOOKS:
        raise ValueError(f"book must be one of {', '.join(BOOKS)}, not {book}")
    if depth not in BOOKS[book]:
        raise ValueError(f"depth must be one of {', '.join(map(str, BOOKS[book]))}, not {depth}")
    return BOOKS[book][depth]


def _parse(layers: str) -> tuple[list[tuple[list[int], bool]], list[int]]:
    """Widths of each stage with whether it ends in P; widths of the hidden layers."""
    stages: list[tuple[list[int], bool]] = []
    hidden: list[int] = []
    for word in layers.upper().split():
        if word == "P" and stages and not stages[-1][1]:
            stages[-1] = (stages[-1][0], True)
        elif word.isdigit() and not hidden:
            if not stages or stages[-1][1]:
                stages.append(([], False))
            stages[-1][0].append(int(word))
        elif word.startswith("FC") and word[2:].isdigit() and stages:
            hidden.append(int(word[2:]))
        else:
            raise ValueError(f"layers: {word} does not fit in {layers!r}: convolutions (16), P between them, then FC64")
    if not stages:
        raise ValueError(f"layers: {layers!r} holds no convolution")
    return stages, hidden


def _stage(inward: int, widths: list[int]) -> nn.Sequential:
    before = [inward, *widths[:-1]]
    return nn.Sequential(*(_Layer(i, o) for i, o in zip(before, widths, strict=True)))


def _hidden(inward: int, widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in zip([inward, *widths], widths, strict=False):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers)
