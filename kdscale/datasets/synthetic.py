"""Synthetic images for tests and benchmarks: no file, any shape, learnable in seconds.

Each class is a smooth random pattern; two neighbouring classes share half of theirs, so a teacher has
something to tell a student beyond the label. A sample is its class's pattern, shifted and covered with
noise. Everything is integer arithmetic on counters: the same bytes on every machine.

Source: none; it is made up here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.options import options_of
from kdscale.draws import hash64, seed_of

__all__ = ["Synthetic"]

_CELLS = 4  # a pattern is a grid of this many random values a side, interpolated


class Synthetic:
    """Made-up images, any number of classes, rows, channels and pixels (`data.options`)."""

    class Config(PluginConfig):
        """Shape and difficulty."""

        classes: int = Field(10, ge=2, le=10_000)
        train_rows: int = Field(2000, ge=1)
        test_rows: int = Field(500, ge=1)
        size: int = Field(28, ge=8, le=1024, description="pixels a side")
        channels: Literal[1, 3] = 1
        noise: float = Field(0.5, ge=0, le=2, description="largest noise, as a share of the full range")
        seed: int = 0

    revision: ClassVar[int] = 1

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        self.config = options_of(data, self.Config)
        self.info = DatasetInfo(
            classes=self.config.classes,
            channels=self.config.channels,
            size=self.config.size,
            train_rows=self.config.train_rows,
            test_rows=self.config.test_rows,
            mean=(0.49,) * self.config.channels,  # measured with the default options
            std=(0.30,) * self.config.channels,
            class_names=tuple(f"pattern {label}" for label in range(self.config.classes)),
        )

    def fingerprint(self) -> str:
        text = f"synthetic revision {self.revision} {self.config.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def open(self, split: Literal["train", "test"]) -> PatternSource:
        return PatternSource(self.config, split, _patterns(self.config))


@dataclass(frozen=True)
class PatternSource:
    """Draws a sample when it is asked for; holds no images."""

    config: Synthetic.Config
    split: Literal["train", "test"]
    patterns: NDArray[np.int64]
    """(C, H, W, K), values 0 to 255."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), without drawing an image."""
        return np.arange(len(self)) % self.config.classes

    def __len__(self) -> int:
        return self.config.train_rows if self.split == "train" else self.config.test_rows

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        label = row % self.config.classes
        shape = self.patterns.shape[1:]
        seed = seed_of(self.config.seed, "synthetic", self.split, row)
        bits = hash64(seed, np.arange(2 + int(np.prod(shape))))
        reach = self.config.size // 8
        down, right = _between(bits[:2], reach).tolist()
        noise = _between(bits[2:], int(255 * self.config.noise)).reshape(shape)
        image = np.roll(self.patterns[label], (down, right), axis=(0, 1)) + noise
        return image.clip(0, 255).astype(np.uint8), label


def _between(bits: NDArray[np.uint64], largest: int) -> NDArray[np.int64]:
    """Map bits to whole numbers from -largest to largest (signed first: an unsigned one would wrap)."""
    return (bits % np.uint64(2 * largest + 1)).astype(np.int64) - largest


def _patterns(config: Synthetic.Config) -> NDArray[np.int64]:
    """Draw every class's pattern (C, H, W, K): half its own, half shared with its neighbour."""
    shape = (_CELLS, _CELLS, config.channels)
    count = int(np.prod(shape))

    def grids(kind: str, number: int) -> NDArray[np.int64]:
        bits = hash64(seed_of(config.seed, "pattern", kind), np.arange(number * count))
        return (bits >> np.uint64(56)).astype(np.int64).reshape(number, *shape)

    own, shared = grids("own", config.classes), grids("shared", (config.classes + 1) // 2)
    mixed = (own + np.repeat(shared, 2, axis=0)[: config.classes]) // 2
    return _stretch(_stretch(mixed, config.size, axis=1), config.size, axis=2)


def _stretch(grid: NDArray[np.int64], size: int, axis: int) -> NDArray[np.int64]:
    """Interpolate linearly along `axis`, round about (the pattern may be rolled), in integers."""
    position = np.arange(size) * _CELLS
    left, share = position // size, position % size
    share = share.reshape([-1 if a == axis else 1 for a in range(grid.ndim)])
    near, far = grid.take(left, axis=axis), grid.take((left + 1) % _CELLS, axis=axis)
    return (near * (size - share) + far * share) // size
