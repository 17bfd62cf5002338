"""Image folders: classes by name, a listing for planning, pixels on demand, and plain words for what is amiss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdscale.config.schema import DataConfig
from kdscale.datasets.image_folder import ImageFolder
from kdscale.errors import DataError


def draw(path: Path, colour: tuple[int, int, int] = (200, 30, 40), size: tuple[int, int] = (9, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three and one images; the test split lies in val, beside an unlabelled test as in ImageNet."""
    for name in ("train/zebra/b.png", "train/zebra/a.JPEG", "train/ant/x.png", "val/zebra/1.png", "val/ant/1.png"):
        draw(tmp_path / name)
    draw(tmp_path / "test" / "unlabelled.png")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def folder(root: Path | None, **options: object) -> ImageFolder:
    return ImageFolder(DataConfig(name="image_folder", root=root, options=options))


def test_classes_and_rows_are_sorted_by_name(root: Path) -> None:
    dataset = folder(root)
    assert dataset.info.class_names == ("ant", "zebra")
    assert (dataset.info.train_rows, dataset.info.test_rows, dataset.info.channels) == (3, 2, 3)
    source = dataset.open("train")
    assert [(entry.path, entry.label) for entry in source.entries] == [
        ("ant/x.png", 0),
        ("zebra/a.JPEG", 1),
        ("zebra/b.png", 1),
    ]


def test_images_are_decoded_as_rgb_at_their_own_size(root: Path) -> None:
    Image.new("L", (4, 5), 77).save(root / "train" / "ant" / "x.png")
    image, label = folder(root).open("train")[0]
    assert label == 0
    np.testing.assert_array_equal(image, np.full((5, 4, 3), 77, np.uint8))


def test_the_fingerprint_is_the_listing(root: Path) -> None:
    before = folder(root).fingerprint()
    assert folder(root).fingerprint() == before
    moved = root.parent / "moved"
    root.rename(moved)
    assert folder(moved).fingerprint() == before, "where it lies does not count"
    draw(moved / "train" / "ant" / "new.png")
    assert folder(moved).fingerprint() != before
    (moved / "train" / "ant" / "new.png").unlink()
    (moved / "train" / "wasp").mkdir()
    assert folder(moved).fingerprint() != before, "an empty class is a class"


def test_a_labelled_test_folder_comes_before_val(root: Path) -> None:
    draw(root / "test" / "ant" / "t.png")
    assert folder(root).info.test_rows == 1
    assert folder(root, test="val").info.test_rows == 2


def test_the_root_may_come_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSCALE_DATA", str(root.parent))
    root.rename(root.parent / "image_folder")
    assert folder(None).info.classes == 2


def test_what_is_amiss_is_said_with_its_path(root: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.root"):
        _ = folder(None).info
    with pytest.raises(DataError, match=r"birds/train is no folder"):
        folder(root / "birds").fingerprint()
    (root / "val" / "bee").mkdir()
    with pytest.raises(DataError, match=r"val has classes that .*train lacks: bee"):
        _ = folder(root).info
    (root / "train" / "zebra" / "b.png").write_bytes(b"\x89PNG cut short")
    with pytest.raises(DataError, match=r"zebra/b\.png: cannot be decoded"):
        ImageFolder(DataConfig(name="image_folder", root=root, options={"test": "train"})).open("train")[2]


def test_a_split_without_images_is_refused(root: Path) -> None:
    for path in (root / "val").glob("*/*"):
        path.unlink()
    with pytest.raises(DataError, match=r"no images below .*val"):
        folder(root).fingerprint()


def test_a_set_to_test_on_alone_needs_no_training_images(root: Path, tmp_path: Path) -> None:
    alone = folder(root, train=None)
    assert (alone.info.train_rows, alone.info.test_rows) == (0, 2)
    assert alone.info.class_names == ("ant", "zebra")
    assert (len(alone.open("train")), len(alone.open("test"))) == (0, 2)
    assert alone.fingerprint() != folder(root).fingerprint()
    bare = folder(root / "val", train=None)
    assert bare.info.test_rows == 2, "the root's own folders may be the classes"
    with pytest.raises(DataError, match="has no class folders"):
        _ = folder(tmp_path / "nothing", train=None).info
