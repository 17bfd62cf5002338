"""Your own images in ImageNet's layout: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS (or ROOT/val/CLASS).

Classes are the folders of train, sorted by name as torchvision's ImageFolder sorts them; of a set to test on alone
(`train: null`), which may also be ROOT/CLASS/*.jpg, those of test. Planning needs the listing alone; pixels are decoded
when the data is converted.

Source: none; the images are your own, and so is what is to be cited for them.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.options import options_of
from kdscale.data.own_images import IMAGENET_MEAN, IMAGENET_STD, decoded, folder_of, stored_size
from kdscale.errors import DataError

__all__ = ["ImageFolder"]

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Entry:
    """One image as the listing knows it."""

    path: str
    """Relative to the split's folder, with forward slashes."""
    label: int
    size: int
    """Bytes."""


class ImageFolder:
    """Your own images: ROOT/train/CLASS/*.jpg and ROOT/test (or val)/CLASS/*.jpg, read as RGB."""

    class Config(PluginConfig):
        """Which folders hold the splits."""

        train: str | None = "train"
        """Null: there are no training images, it is a set to test on."""
        test: str | None = None
        """Default: `test` where it has class folders, else `val`; without training images also the root itself."""

    revision: ClassVar[int] = 1

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:  # the user's own: nothing to download
        self.config = options_of(data, self.Config)
        self._data = data

    @cached_property
    def info(self) -> DatasetInfo:
        """List the folders, once.

        Raises:
            DataError: they are missing, empty, or do not hold the same classes.
        """
        names = self._classes
        return DatasetInfo(
            classes=len(names),
            channels=3,
            size=stored_size(self._data),
            train_rows=len(self._entries["train"]),
            test_rows=len(self._entries["test"]),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            class_names=tuple(names),
        )

    def fingerprint(self) -> str:
        lines = [f"class {name}\n" for name in self._classes]
        for split, entries in self._entries.items():
            lines += [f"{split}/{entry.path} {entry.size}\n" for entry in entries]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def open(self, split: Literal["train", "test"]) -> FileSource:
        return FileSource(self._folders.get(split, self.root), self._entries[split])

    @cached_property
    def root(self) -> Path:
        """The folder that holds the splits: data.root, else KDSCALE_DATA/image_folder."""
        root = folder_of(self._data, "image_folder", "train/ and test/ (or val/)")
        if self.config.train is not None and not (root / self.config.train).is_dir():
            raise DataError(f"image_folder: {root / self.config.train} is no folder; data.root must hold train/CLASS/*")
        return root

    @cached_property
    def _folders(self) -> dict[str, Path]:
        if self.config.test:
            test = self.root / self.config.test
        else:  # ImageNet's own test folder has no labels: it is passed over for val
            candidates = (self.root / "test", self.root / "val", *([self.root] if self.config.train is None else []))
            test = next((path for path in candidates if _class_names(path)), candidates[1])
        return {"test": test} if self.config.train is None else {"train": self.root / self.config.train, "test": test}

    @cached_property
    def _classes(self) -> list[str]:
        test = _class_names(self._folders["test"])
        train = _class_names(self._folders["train"]) if "train" in self._folders else test
        if not train or not test:
            empty = self._folders["test" if train or "train" not in self._folders else "train"]
            raise DataError(f"image_folder: {empty} has no class folders; expected {empty}/CLASS/*.jpg")
        if unknown := sorted(set(test) - set(train)):
            raise DataError(
                f"image_folder: {self._folders['test']} has classes that {self._folders['train']} lacks: "
                f"{', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}"
            )
        return train

    @cached_property
    def _entries(self) -> dict[str, list[Entry]]:
        found = {split: _listing(folder, self._classes) for split, folder in self._folders.items()}
        return found if "train" in found else {"train": [], **found}


@dataclass(frozen=True)
class FileSource:
    """Decodes an image when it is asked for."""

    folder: Path
    entries: list[Entry]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), without decoding an image."""
        return np.array([entry.label for entry in self.entries], np.int64)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        entry = self.entries[row]
        return decoded(self.folder / entry.path), entry.label


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _listing(folder: Path, classes: list[str]) -> list[Entry]:
    entries = []
    for label, name in enumerate(classes):
        found = _images(folder / name) if (folder / name).is_dir() else []
        entries += [Entry(f"{name}/{file}", label, size) for file, size in sorted(found)]
    if not entries:
        raise DataError(f"image_folder: no images below {folder} (looked for {', '.join(sorted(_SUFFIXES))})")
    return entries


def _images(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        names = [entry for entry in entries if os.path.splitext(entry.name)[1].lower() in _SUFFIXES]
        return [(entry.name, entry.stat().st_size) for entry in names if entry.is_file()]
