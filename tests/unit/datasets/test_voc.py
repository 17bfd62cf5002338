"""Images and masks in Pascal VOC's folders: read as they are, and what is wrong with them is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdscale.config.schema import DataConfig
from kdscale.datasets.voc import Voc
from kdscale.errors import DataError

MASK = np.array([[0, 0, 2], [255, 2, 1]], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((2, 3, 3), 90, np.uint8)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(MASK).convert("L") if name == "b" else palette(MASK)
        mask.save(tmp_path / "SegmentationClass" / f"{name}.png")
    listed(tmp_path, "train", "b\na\n")
    listed(tmp_path, "val", "c\n")
    return tmp_path


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.new("P", mask.shape[::-1])
    image.putdata(mask.ravel().tolist())
    image.putpalette([n % 256 for n in range(768)])
    return image


def listed(root: Path, split: str, text: str) -> None:
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)


def voc(root: Path, **options: Any) -> Voc:
    return Voc(DataConfig(name="voc", root=root, options=options))


def test_reads_the_lists_and_shifts_classes_by_one(root: Path) -> None:
    dataset = voc(root)
    info = dataset.info
    assert (info.train_rows, info.test_rows, info.classes, info.planes) == (2, 1, 21, 4)
    for row in range(2):
        image, label = dataset.open("train")[row]
        np.testing.assert_array_equal(image[:, :, 3], MASK + np.uint8(1))
        assert image[1, 0, 3] == 0, "what is ignored"
        assert label == 2, "the class of most pixels besides the background"
    assert abs(int(image[0, 0, 0]) - 90) <= 1


def test_an_image_without_any_class_counts_as_background(root: Path) -> None:
    palette(np.zeros_like(MASK)).save(root / "SegmentationClass" / "c.png")
    assert voc(root).open("test")[0][1] == 0


def test_the_lists_and_the_files_are_what_is_fingerprinted(root: Path) -> None:
    before = voc(root).fingerprint()
    assert voc(root).fingerprint() == before
    listed(root, "train", "a\n")
    assert voc(root).fingerprint() != before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: listed(r, "train", "a d"), "names d, but"),
        (lambda r: listed(r, "train", "a a"), "names a twice"),
        (lambda r: listed(r, "train", ""), "names no image"),
        (lambda r: (r / "ImageSets" / "Segmentation" / "val.txt").unlink(), "val.txt is missing"),
        (lambda r: (r / "JPEGImages").rename(r / "Images"), "JPEGImages is no folder"),
        (lambda r: (r / "SegmentationClass" / "c.png").write_bytes(b"no"), "c.png: cannot be decoded"),
        (lambda r: Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(r / "SegmentationClass" / "c.png"), "mode RGB"),
        (lambda r: palette(MASK[:, :2]).save(r / "SegmentationClass" / "c.png"), r"\(2, 2\) pixels for an image"),
        (lambda r: palette(MASK + np.uint8(20)).save(r / "SegmentationClass" / "c.png"), "has class 22, of 21"),
    ],
)
def test_what_is_wrong_is_named(root: Path, change: Any, said: str) -> None:
    change(root)
    with pytest.raises(DataError, match=said):
        _ = voc(root).fingerprint(), voc(root).open("test")[0]


def test_class_names_are_the_users_own(root: Path) -> None:
    assert voc(root, classes=3, class_names=["a", "b", "c"]).info.class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="2 names for 3 classes"):
        _ = voc(root, classes=3, class_names=["a", "b"]).info
    with pytest.raises(DataError, match=r"set data\.root"):
        _ = Voc(DataConfig(name="voc")).info
