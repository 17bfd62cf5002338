"""Scenes of several garments of Fashion-MNIST, with a class for each pixel: real images to learn segmentation from.

Each scene is a function of its row: garments of the same split of Fashion-MNIST are laid on a dark canvas, later ones
over earlier ones. A garment's bright pixels have its class, the canvas is the background, and the dim pixels of a
garment's border, which could be either, are ignored.

Source: the garments are those of Fashion-MNIST, arXiv:1708.07747; the scenes are laid out here.
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
from kdscale.data.sources import ArraySource
from kdscale.datasets.fashion_mnist import FashionMNIST
from kdscale.draws import hash64, seed_of

__all__ = ["FashionScenes"]

BIBTEX = """
@misc{xiao2017fashion,
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  title = {{Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms}},
  year = {2017},
  eprint = {1708.07747},
  archivePrefix = {arXiv}
}
"""

_GARMENT = 28  # pixels a side
_COVERS, _BELONGS = 16, 64  # grey values from which a pixel hides what is below, and is sure to be the garment
_SLOTS = 64  # counters that a scene may draw from: its number of garments, then four for each


class FashionScenes:
    """Scenes of Fashion-MNIST's garments for segmentation: 10 classes and background, any number of rows."""

    class Config(PluginConfig):
        """Size of the scenes, and how many."""

        canvas: int = Field(64, ge=_GARMENT, le=512, description="pixels a side")
        garments: int = Field(4, ge=1, le=15, description="most garments of a scene; the least is 1")
        train_rows: int = Field(6000, ge=1)
        test_rows: int = Field(1000, ge=1)
        seed: int = 0

    revision: ClassVar[int] = 1

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        self.config = options_of(data, self.Config)
        self._garments = FashionMNIST(data.model_copy(update={"options": {}}), download=download)
        self.files = self._garments.files
        self.info = DatasetInfo(
            classes=1 + self._garments.info.classes,
            channels=1,
            size=self.config.canvas,
            train_rows=self.config.train_rows,
            test_rows=self.config.test_rows,
            mean=(0.1153,),  # measured over the training scenes of the default options
            std=(0.2651,),
            class_names=("background", *self._garments.info.class_names),
            per_pixel=True,
        )

    def fingerprint(self) -> str:
        text = f"{self.files.fingerprint()} revision {self.revision} {self.config.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def open(self, split: Literal["train", "test"]) -> SceneSource:
        seed = seed_of("fashion_scenes", self.config.seed, split)
        rows = self.info.train_rows if split == "train" else self.info.test_rows
        return SceneSource(self._garments.open(split), self.config.canvas, self.config.garments, rows, seed)


@dataclass(frozen=True)
class SceneSource:
    """Lays a scene out when it is asked for."""

    garments: ArraySource
    canvas: int
    most: int
    rows: int
    seed: int

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class of each scene's first garment."""
        first = self._draws(np.arange(self.rows) * _SLOTS + 1)
        return 1 + self.garments.labels[(first % np.uint64(len(self.garments))).astype(np.int64)]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        if not 0 <= row < self.rows:
            raise IndexError(row)
        drawn = self._draws(row * _SLOTS + np.arange(1 + 4 * self.most))
        count = 1 + int(drawn[0] % np.uint64(self.most))
        scene = np.zeros((self.canvas, self.canvas, 2), np.uint8)
        scene[:, :, 1] = 1  # a class is stored as class + 1: the background is class 0
        room = np.uint64(self.canvas - _GARMENT + 1)
        numbers = (drawn[1::4] % np.uint64(len(self.garments)))[:count].tolist()
        downs, rights = (drawn[2::4] % room).tolist(), (drawn[3::4] % room).tolist()
        for number, down, right in zip(numbers, downs, rights, strict=False):
            image, label = self.garments[number]
            _lay(scene[down : down + _GARMENT, right : right + _GARMENT], image[:, :, 0], label)
        return scene, 1 + int(self.garments.labels[numbers[0]])

    def _draws(self, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
        return hash64(self.seed, counters)


def _lay(window: NDArray[np.uint8], garment: NDArray[np.uint8], label: int) -> None:
    """Lay a garment over part of a scene."""
    covers = garment >= _COVERS
    window[covers, 0] = garment[covers]
    window[covers, 1] = np.where(garment >= _BELONGS, label + 2, 0)[covers]
