"""Digits: the 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn.

Source: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
Nobody publishes a split of it: the last 300 rows, written by other people than the first, are the test set.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.options import options_of
from kdscale.data.packages import Package, Publication
from kdscale.data.sources import ArraySource, PublishedFiles

__all__ = ["Digits"]

BIBTEX = """
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {{Optical Recognition of Handwritten Digits}},
  howpublished = {UCI Machine Learning Repository},
  year = {1998}
}
"""

_TRAIN_ROWS = 1497


class Digits:
    """Digits of scikit-learn: 1,497 + 300 grey images, 10 classes, 8 pixels."""

    class Config(PluginConfig):
        """It has no options."""

    revision: ClassVar[int] = 1
    info = DatasetInfo(
        classes=10,
        channels=1,
        size=8,
        train_rows=_TRAIN_ROWS,
        test_rows=300,
        mean=(0.3052,),  # computed over the 1,497 training images
        std=(0.3749,),
        class_names=tuple("0123456789"),
    )

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        options_of(data, self.Config)
        self.files = PublishedFiles(_publication(), data.root, download=download)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def open(self, split: Literal["train", "test"]) -> ArraySource:
        (content,) = self.files.read("digits.csv")
        table = np.loadtxt(content.decode().splitlines(), delimiter=",", dtype=np.int64)
        rows = slice(_TRAIN_ROWS) if split == "train" else slice(_TRAIN_ROWS, None)
        pixels = table[rows, :-1].reshape(-1, 8, 8, 1)
        return ArraySource(((pixels * 255 + 8) // 16).astype(np.uint8), table[rows, -1])  # 0..16 as 0..255


def _publication() -> Publication:
    # The package is looked up, not imported: scikit-learn takes a second to import, its data lie beside it.
    found = importlib.util.find_spec("sklearn")
    homes = [Path(home) / "datasets" / "data" for home in (found.submodule_search_locations or [])] if found else []
    return Publication(
        name="digits",
        packages=(
            Package(
                "digits.csv.gz",
                md5="9b334365a7bfd63947c7480a5bd51f2d",
                pieces={"digits.csv": "a0339c30a8a5312a1b6f9e5c719dcce5"},
            ),
        ),
        urls=(),
        system=tuple(homes),
        hint="pip install scikit-learn (it brings the file)",
    )
