"""Data for these tests: the real Fashion-MNIST where Debian puts it, and made-up pictures of any shape."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdscale.api import DatasetInfo
from kdscale.draws import hash64

FASHION = Path("/usr/share/datasets/fashion-mnist")


class Pictures:
    """Satisfies api.Dataset with images in memory."""

    def __init__(self, splits: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]], classes: int) -> None:
        images, _ = splits["train"]
        channels = images.shape[3]
        self.splits = splits
        self.info = DatasetInfo(
            classes, channels, images.shape[1], len(images), len(splits["test"][0]), (0.3,) * channels,
            (0.3,) * channels, tuple(str(n) for n in range(classes)),
        )  # fmt: skip

    def fingerprint(self) -> str:
        return "pictures"

    def open(self, split: str) -> PictureSource:
        return PictureSource(*self.splits[split])


class PictureSource:
    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        return self.images[row], int(self.labels[row])


def made_up(train: int = 100, test: int = 30, size: int = 12, channels: int = 3, classes: int = 5) -> Pictures:
    """Noise, so that no two images or views are alike."""
    splits = {}
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        pixels = hash64(seed, np.arange(count * size * size * channels)).astype(np.uint8)
        labels = (hash64(seed + 10, np.arange(count)) % np.uint64(classes)).astype(np.int64)
        splits[name] = (pixels.reshape(count, size, size, channels), labels)
    return Pictures(splits, classes)


def fashion_mnist(train: int = 60_000, test: int = 10_000) -> Pictures:
    """The real thing, 28 x 28 and grey: its first rows."""
    splits = {}
    for name, prefix, count in (("train", "train", train), ("test", "t10k", test)):
        images = np.frombuffer(_unpacked(f"{prefix}-images-idx3-ubyte.gz"), np.uint8, offset=16)
        labels = np.frombuffer(_unpacked(f"{prefix}-labels-idx1-ubyte.gz"), np.uint8, offset=8)
        splits[name] = (images.reshape(-1, 28, 28, 1)[:count], labels[:count].astype(np.int64))
    return Pictures(splits, 10)


def _unpacked(name: str) -> bytes:
    return gzip.decompress((FASHION / name).read_bytes())
