"""CIFAR-100: 60,000 colour images of a hundred kinds of things, 32 x 32 pixels.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; file and MD5 from
https://www.cs.toronto.edu/~kriz/cifar.html. The labels are the 100 fine ones.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from kdscale.api import DatasetInfo, PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.data.cifar import open_cifar, pickled_hint
from kdscale.data.options import options_of
from kdscale.data.packages import Package, Publication
from kdscale.data.sources import ArraySource, PublishedFiles

__all__ = ["CIFAR100"]

BIBTEX = """
@techreport{krizhevsky2009learning,
  author = {Krizhevsky, Alex},
  title = {{Learning Multiple Layers of Features from Tiny Images}},
  institution = {University of Toronto},
  year = {2009}
}
"""

_FILE = "cifar-100-binary.tar.gz"
_PUBLICATION = Publication(
    name="cifar100",
    packages=(
        Package(
            _FILE,
            md5="03b5dce01913d631647c71ecec9e9cb8",
            pieces={  # as github.com/rai-project/dldataset has them; the archive's own MD5 is the authors'
                "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
                "test.bin": "4499cfba6c016c1be1438163640a0898",
            },
            folder="cifar-100-binary",
        ),
    ),
    urls=("https://www.cs.toronto.edu/~kriz",),
    hint=pickled_hint(_FILE, "cifar-100-python"),
)

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


class CIFAR100:
    """CIFAR-100: 50,000 + 10,000 colour images, 100 classes, 32 pixels."""

    class Config(PluginConfig):
        """It has no options."""

    revision: ClassVar[int] = 1
    info = DatasetInfo(
        classes=100,
        channels=3,
        size=32,
        train_rows=50_000,
        test_rows=10_000,
        mean=(0.5071, 0.4867, 0.4408),  # of the training images, as RepDistiller uses them
        std=(0.2675, 0.2565, 0.2761),
        class_names=tuple(_CLASSES.split()),
    )

    def __init__(self, data: DataConfig, *, download: bool = True) -> None:
        options_of(data, self.Config)
        self.files = PublishedFiles(_PUBLICATION, data.root, download=download)

    def fingerprint(self) -> str:
        return self.files.fingerprint()

    def open(self, split: Literal["train", "test"]) -> ArraySource:
        rows: int = getattr(self.info, f"{split}_rows")
        return open_cifar(self.files, [f"{split}.bin"], label_bytes=2, classes=100, rows=rows)
