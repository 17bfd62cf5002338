"""MNIST is read from IDX files; the files themselves are not here, so a miniature with its names stands in."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.data.idx import open_idx
from kdscale.datasets.mnist import MNIST
from kdscale.errors import DataError


def miniature(folder: Path, rows: int, labels: int) -> MNIST:
    """Write MNIST's four files with few rows, and vouch for them."""
    dataset = MNIST(DataConfig(name="mnist", root=folder))
    packages = []
    for package in dataset.files.publication.packages:
        (piece,) = package.pieces
        count, shape = (rows, (28, 28)) if "images" in piece else (labels, ())
        body = (np.arange(count * int(np.prod(shape, dtype=int))) % 251).astype(np.uint8).tobytes()
        content = b"\0\0\x08" + struct.pack(f">B{1 + len(shape)}I", 1 + len(shape), count, *shape) + body
        (folder / piece).write_bytes(content)
        packages.append(replace(package, pieces={piece: hashlib.md5(content, usedforsecurity=False).hexdigest()}))
    dataset.files.publication = replace(dataset.files.publication, packages=tuple(packages))
    return dataset


def test_images_and_labels_are_paired(tmp_path: Path) -> None:
    source = open_idx(miniature(tmp_path, 5, 5).files, "train", 5)
    image, label = source[3]
    assert label == 3
    assert image.shape == (28, 28, 1)
    assert image[0, 0, 0] == 3 * 28 * 28 % 251


def test_labels_of_another_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(5, 28, 28\) images and \(4,\) labels"):
        open_idx(miniature(tmp_path, 5, 4).files, "test", 5)


def test_other_bytes_under_its_names_are_refused(tmp_path: Path) -> None:
    miniature(tmp_path, 5, 5)
    with pytest.raises(DataError, match="not the published mnist"):
        MNIST(DataConfig(name="mnist", root=tmp_path)).fingerprint()


def test_without_the_files_it_can_be_planned_but_not_opened() -> None:
    dataset = MNIST(DataConfig(name="mnist"), download=False)
    assert len(dataset.fingerprint()) == 64
    with pytest.raises(DataError, match=r"mnist was not found .*(\n.*)*ossci-datasets"):
        dataset.open("train")
