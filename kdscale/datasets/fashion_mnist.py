"""Fashion-MNIST: 70,000 grey images of clothing in ten classes, 28 x 28 pixels.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", arXiv:1708.07747; files and MD5 from https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.idx import open_idx
from kdscale.data.options import options_of
from kdscale.data.packages import Package, Publication
from kdscale.data.sources import ArraySource, PublishedFiles

__all__ = ["FashionMNIST"]

BIBTEX = """
@misc{xiao2017fashion,
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  title = {{Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms}},
  year = {2017},
  eprint = {1708.07747},
  archivePrefix = {arXiv}
}
"""

_PUBLICATION = Publication(
    name="fashion_mnist",
    packages=(
        Package(
            "train-images-idx3-ubyte.gz",
            md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            pieces={"train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a"},
        ),
        Package(
            "train-labels-idx1-ubyte.gz",
            md5="25c81989df183df01b3e8a0aad5dffbe",
            pieces={"train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9"},
        ),
        Package(
            "t10k-images-idx3-ubyte.gz",
            md5="bef4ecab320f06d8554ea6380940ec79",
            pieces={"t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a"},
        ),
        Package(
            "t10k-labels-idx1-ubyte.gz",
            md5="bb300cfdad3c16e7a12a480ee83cd310",
            pieces={"t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965"},
        ),
    ),
    urls=(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    system=(Path("/usr/share/datasets/fashion-mnist"),),
    aliases=("fashion-mnist", "FashionMNIST/raw"),
    hint="apt-get install dataset-fashion-mnist",
)


class FashionMNIST:
    """Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 10 classes, 28 pixels."""

    class Config(PluginConfig):
        """It has no options."""

    revision: ClassVar[int] = 1
    info = DatasetInfo(
        classes=10,
        channels=1,
        size=28,
        train_rows=60_000,
        test_rows=10_000,
        mean=(0.2860,),  # computed over the 60,000 training images
        std=(0.3530,),
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    )

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        options_of(data, self.Config)
        self.files = PublishedFiles(_PUBLICATION, data.root, download=download)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def open(self, split: Literal["train", "test"]) -> ArraySource:
        return open_idx(self.files, split, getattr(self.info, f"{split}_rows"))
