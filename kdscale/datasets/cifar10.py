"""CIFAR-10: 60,000 colour images of ten kinds of things, 32 x 32 pixels.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; file and MD5 from
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.cifar import open_cifar, pickled_hint
from kdscale.data.options import options_of
from kdscale.data.packages import Package, Publication
from kdscale.data.sources import ArraySource, PublishedFiles

__all__ = ["CIFAR10"]

BIBTEX = """
@techreport{krizhevsky2009learning,
  author = {Krizhevsky, Alex},
  title = {{Learning Multiple Layers of Features from Tiny Images}},
  institution = {University of Toronto},
  year = {2009}
}
"""

_FILE = "cifar-10-binary.tar.gz"
_TRAIN = {  # MD5 as github.com/rai-project/dldataset has them; the archive's own is the authors'
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
}
_TEST = {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"}
_PUBLICATION = Publication(
    name="cifar10",
    packages=(
        Package(
            _FILE,
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            pieces=_TRAIN | _TEST,
            folder="cifar-10-batches-bin",
        ),
    ),
    urls=("https://www.cs.toronto.edu/~kriz",),
    hint=pickled_hint(_FILE, "cifar-10-batches-py"),
)


class CIFAR10:
    """CIFAR-10: 50,000 + 10,000 colour images, 10 classes, 32 pixels."""

    class Config(PluginConfig):
        """It has no options."""

    revision: ClassVar[int] = 1
    info = DatasetInfo(
        classes=10,
        channels=3,
        size=32,
        train_rows=50_000,
        test_rows=10_000,
        mean=(0.4914, 0.4822, 0.4465),  # of the training images, as kuangliu/pytorch-cifar and others use them
        std=(0.2470, 0.2435, 0.2616),
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    )

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        options_of(data, self.Config)
        self.files = PublishedFiles(_PUBLICATION, data.root, download=download)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def open(self, split: Literal["train", "test"]) -> ArraySource:
        rows: int = getattr(self.info, f"{split}_rows")
        pieces = list(_TRAIN if split == "train" else _TEST)
        return open_cifar(self.files, pieces, label_bytes=1, classes=10, rows=rows)
