"""CIFAR-100 is read from its binary records; the archive is not here, so one with its names and sizes stands in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdscale.config.schema import DataConfig
from kdscale.datasets.cifar100 import CIFAR100
from kdscale.errors import DataError

RECORD = 2 + 3 * 32 * 32


def test_the_fine_label_counts(tmp_path: Path, pack: Callable[[dict[str, bytes]], bytes]) -> None:
    table = np.zeros((10_000, RECORD), np.uint8)
    table[:, 0] = 19  # coarse
    table[:, 1] = np.arange(10_000) % 100
    dataset = CIFAR100(DataConfig(name="cifar100", root=tmp_path))
    (package,) = dataset.files.publication.packages
    content = pack({"cifar-100-binary/train.bin": b"", "cifar-100-binary/test.bin": table.tobytes()})
    (tmp_path / package.file).write_bytes(content)
    dataset.files.publication = replace(
        dataset.files.publication, packages=(replace(package, pieces=md5_of_pieces(table.tobytes())),)
    )
    source = dataset.open("test")
    assert source.labels[199] == 99
    assert len(dataset.info.class_names) == len(set(dataset.info.class_names)) == 100
    with pytest.raises(DataError, match="0 bytes, expected 50000 records"):
        dataset.open("train")


def md5_of_pieces(test: bytes) -> dict[str, str]:
    return {
        "train.bin": hashlib.md5(b"", usedforsecurity=False).hexdigest(),
        "test.bin": hashlib.md5(test, usedforsecurity=False).hexdigest(),
    }
