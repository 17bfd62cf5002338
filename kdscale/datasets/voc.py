"""Your own images with a class for each pixel, in the layout of Pascal VOC.

    ROOT/JPEGImages/NAME.jpg  ROOT/SegmentationClass/NAME.png  ROOT/ImageSets/Segmentation/{train,val}.txt

A mask is a PNG file whose values (indices of a palette, or grey values) are classes; 255 is ignored, as is what lies
outside of an image once it is padded. Layout: Everingham et al., "The Pascal visual object classes challenge", 2010.

Source: none; the images are your own, and so is what is to be cited for them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdscale.api import IGNORED, DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.options import options_of
from kdscale.data.own_images import IMAGENET_MEAN, IMAGENET_STD, decoded, folder_of, stored_size
from kdscale.errors import DataError

__all__ = ["Voc"]

_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Voc:
    """Your own images and masks in Pascal VOC's folders, read as RGB; `data.root` is the folder above JPEGImages."""

    class Config(PluginConfig):
        """Classes, and which lists hold the splits."""

        classes: int = Field(len(_NAMES), ge=2, le=IGNORED - 1, description="with the background")
        class_names: list[str] | None = Field(None, description="default: VOC's own, where there are 21 classes")
        train: str = "train"
        test: str = "val"

    revision: ClassVar[int] = 1

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:  # the user's own: nothing to download
        self.config = options_of(data, self.Config)
        self._data = data

    @cached_property
    def info(self) -> DatasetInfo:
        """Read the lists, once. Raises: DataError: a folder, a list or a file that it names is missing."""
        count = self.config.classes
        names = self.config.class_names or (_NAMES if count == len(_NAMES) else [f"class {n}" for n in range(count)])
        if len(names) != count:
            raise DataError(f"data.options.class_names: {len(names)} names for {count} classes")
        return DatasetInfo(
            classes=count,
            channels=3,
            size=stored_size(self._data),
            train_rows=len(self._rows["train"]),
            test_rows=len(self._rows["test"]),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            class_names=tuple(names),
            per_pixel=True,
        )

    def fingerprint(self) -> str:
        rows = [(split, name) for split, names in self._rows.items() for name in names]
        sizes = [
            f"{split} {name} {' '.join(str(p.stat().st_size) for p in self._files(name))}\n" for split, name in rows
        ]
        return hashlib.sha256("".join([f"classes {self.config.classes}\n", *sizes]).encode()).hexdigest()

    def open(self, split: Literal["train", "test"]) -> MaskedSource:
        return MaskedSource([self._files(name) for name in self._rows[split]], self.config.classes)

    @cached_property
    def root(self) -> Path:
        """The folder above JPEGImages: data.root, else KDSCALE_DATA/voc."""
        root = folder_of(self._data, "voc", "JPEGImages/ and SegmentationClass/")
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            if not (root / name).is_dir():
                raise DataError(f"voc: {root / name} is no folder; data.root must hold {name}/")
        return root

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.root / "JPEGImages" / f"{name}.jpg", self.root / "SegmentationClass" / f"{name}.png"

    @cached_property
    def _rows(self) -> dict[str, list[str]]:
        return {"train": self._listed(self.config.train), "test": self._listed(self.config.test)}

    def _listed(self, split: str) -> list[str]:
        """Names of a split's images, in the order of its list."""
        path = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.is_file():
            raise DataError(f"voc: {path} is missing: a list of names, one a line")
        names = path.read_text(encoding="utf-8").split()
        if not names:
            raise DataError(f"voc: {path} names no image")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"voc: {path} names {twice[0]} twice")
        for file in (file for name in names for file in self._files(name)):
            if not file.is_file():
                raise DataError(f"voc: {path} names {file.stem}, but {file} is missing")
        return names


@dataclass(frozen=True)
class MaskedSource:
    """Decodes an image and its mask when they are asked for."""

    files: list[tuple[Path, Path]]
    classes: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        image_file, mask_file = self.files[row]
        image, mask = decoded(image_file), decoded(mask_file, None)
        if mask.shape != image.shape[:2]:
            raise DataError(
                f"{mask_file}: {mask.shape} pixels for an image of {image.shape[:2]}; expected one class each"
            )
        known = mask[mask != IGNORED]
        if known.size and known.max() >= self.classes:
            raise DataError(f"{mask_file}: has class {known.max()}, of {self.classes}; see data.options.classes")
        # as bytes 255 + 1 is 0, which is how an ignored pixel is stored
        return np.dstack([image, mask + np.uint8(1)]), _main_class(known)


def _main_class(known: NDArray[np.uint8]) -> int:
    """The class that most pixels have besides the background, which is everywhere."""
    counts = np.bincount(known, minlength=2)
    return int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
