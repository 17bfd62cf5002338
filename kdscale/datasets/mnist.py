"""MNIST: 70,000 grey images of handwritten digits, 28 x 28 pixels.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86(11), 1998; MD5 of the four files of http://yann.lecun.com/exdb/mnist as
torchvision and others publish them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.idx import open_idx
from kdscale.data.options import options_of
from kdscale.data.packages import Package, Publication
from kdscale.data.sources import ArraySource, PublishedFiles

__all__ = ["MNIST"]

BIBTEX = r"""
@article{lecun1998gradient,
  author = {LeCun, Yann and Bottou, L{\'e}on and Bengio, Yoshua and Haffner, Patrick},
  title = {{Gradient-Based Learning Applied to Document Recognition}},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  year = {1998}
}
"""

_PUBLICATION = Publication(
    name="mnist",
    packages=(
        Package(
            "train-images-idx3-ubyte.gz",
            md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
            pieces={"train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb"},
        ),
        Package(
            "train-labels-idx1-ubyte.gz",
            md5="d53e105ee54ea40749a09fcbcd1e9432",
            pieces={"train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624"},
        ),
        Package(
            "t10k-images-idx3-ubyte.gz",
            md5="9fb629c4189551a2d022fa330f9573f3",
            pieces={"t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea"},
        ),
        Package(
            "t10k-labels-idx1-ubyte.gz",
            md5="ec29112dd5afa0611ce80d1b7f02629c",
            pieces={"t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637"},
        ),
    ),
    urls=(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    aliases=("MNIST/raw",),
)


class MNIST:
    """MNIST: 60,000 + 10,000 grey images of handwritten digits, 10 classes, 28 pixels."""

    class Config(PluginConfig):
        """It has no options."""

    revision: ClassVar[int] = 1
    info = DatasetInfo(
        classes=10,
        channels=1,
        size=28,
        train_rows=60_000,
        test_rows=10_000,
        mean=(0.1307,),  # of the training images, as in PyTorch's MNIST example
        std=(0.3081,),
        class_names=tuple("0123456789"),
    )

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        options_of(data, self.Config)
        self.files = PublishedFiles(_PUBLICATION, data.root, download=download)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def open(self, split: Literal["train", "test"]) -> ArraySource:
        return open_idx(self.files, split, getattr(self.info, f"{split}_rows"))
