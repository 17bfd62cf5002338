"""CIFAR-10 is read from its binary records; the archive is not here, so one with its names and sizes stands in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.datasets.cifar10 import CIFAR10
from kdscale.errors import DataError

RECORD = 1 + 3 * 32 * 32


def stand_in(folder: Path, pack: Callable[[dict[str, bytes]], bytes], largest_label: int = 9) -> CIFAR10:
    """Unpacked batches of 10,000 records: label = row mod classes, red = row, green = y, blue = x."""
    rows = np.arange(10_000)
    table = np.zeros((10_000, RECORD), np.uint8)
    table[:, 0] = rows % (largest_label + 1)
    table[:, 1:1025] = (rows % 256)[:, None]
    table[:, 1025:2049] = np.arange(1024) // 32
    table[:, 2049:] = np.arange(1024) % 32
    dataset = CIFAR10(DataConfig(name="cifar10", root=folder))
    (package,) = dataset.files.publication.packages
    (folder / package.folder).mkdir()
    for piece in package.pieces:
        (folder / package.folder / piece).write_bytes(table.tobytes())
    return dataset


def test_planes_become_pixels(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    source = stand_in(tmp_path, pack).open("test")
    image, label = source[9_999]
    assert label == 9
    assert image.shape == (32, 32, 3)
    assert image[5, 7].tolist() == [9_999 % 256, 5, 7]


def test_labels_out_of_range_are_refused(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    with pytest.raises(DataError, match="label 19 of 10 classes"):
        stand_in(tmp_path, pack, largest_label=19).open("test")


def test_the_pickled_version_is_named_not_opened(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz there \(cifar-10-batches-py is pickled"):
        CIFAR10(DataConfig(name="cifar10", root=tmp_path), download=False).open("train")


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    dataset = CIFAR10(DataConfig(name="cifar10", root=tmp_path))
    (package,) = dataset.files.publication.packages
    files = {f"{package.folder}/{piece}": b"\0" * RECORD for piece in package.pieces}
    (tmp_path / package.file).write_bytes(pack(files))
    with pytest.raises(DataError, match="not the published cifar10"):
        dataset.fingerprint()
