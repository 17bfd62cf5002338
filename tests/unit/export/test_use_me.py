"""use_me.py reads pictures by itself: as Pillow does, bit for bit, whatever the kind of PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdscale.api import DatasetInfo
from kdscale.config.schema import StudentConfig
from kdscale.data.convert import squared
from kdscale.export.modeling import use_me
from kdscale.nn.build import build_network

INFO = DatasetInfo(4, 3, 24, 10, 10, (0.5,) * 3, (0.2,) * 3, ("cat", "dog", "it's", 'a "bird"'))


def script(channels: int = 3) -> dict[str, Any]:
    """The names that use_me.py defines."""
    info = DatasetInfo(4, channels, 24, 10, 10, (0.5,) * channels, (0.2,) * channels, INFO.class_names)
    network = build_network(StudentConfig(model="resnet_cifar", depth=8), info, 24)
    found: dict[str, Any] = {"__name__": "use_me", "__file__": "use_me.py"}
    exec(compile(use_me(network, INFO.class_names, has_modeling=True, per_pixel=False), "use_me.py", "exec"), found)
    return found


def noise(mode: str, height: int = 13, width: int = 17) -> Image.Image:
    smooth = np.add.outer(np.arange(height) * 5, np.arange(width) * 3)[..., None] + np.arange(4) * 40
    rough = np.random.default_rng(0).integers(0, 40, (height, width, 4))
    picture = Image.fromarray(((smooth + rough) % 256).astype(np.uint8), "RGBA")
    return picture.convert(mode) if mode != "P" else picture.convert("RGB").quantize(40)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("level", [0, 9])
def test_every_kind_of_png_is_read_as_pillow_reads_it(tmp_path: Path, mode: str, level: int) -> None:
    path = tmp_path / "picture.png"
    picture = noise(mode)
    picture.save(path, compress_level=level)
    wanted = np.asarray(picture.convert("L" if mode in ("L", "LA") else "RGB"))
    found = script()["read"](path).permute(1, 2, 0).squeeze(2).numpy()
    assert np.array_equal(found, wanted)


def test_other_kinds_go_through_pillow(tmp_path: Path) -> None:
    path = tmp_path / "picture.bmp"
    noise("RGB").save(path)
    assert np.array_equal(script()["read"](path).permute(1, 2, 0).numpy(), np.asarray(noise("RGB")))


def test_a_png_that_it_cannot_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)
    with pytest.raises(SystemExit, match=r"deep.png: only PNG of 8 bits"):
        script()["read"](path)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 24), (24, 61), (100, 100), (12, 9)])
def test_pictures_are_fitted_as_data_sets_were(height: int, width: int) -> None:
    picture = noise("RGB", height, width)
    found = script()["fitted"](torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))[0].permute(1, 2, 0)
    wanted = squared(np.asarray(picture), 24).astype(int)
    assert found.shape == (24, 24, 3)
    assert np.abs(found.numpy().astype(int) - wanted).max() <= 2, "Pillow's and torch's filters round differently"


def test_grey_and_colour_meet() -> None:
    grey = torch.randint(0, 256, (1, 24, 24), dtype=torch.uint8)
    assert script(3)["fitted"](grey).shape == (1, 3, 24, 24)
    colour = torch.from_numpy(np.asarray(noise("RGB", 24, 24)).copy()).permute(2, 0, 1)
    found, wanted = script(1)["fitted"](colour)[0, 0].numpy(), np.asarray(noise("RGB", 24, 24).convert("L"))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_names_of_classes_may_hold_anything() -> None:
    assert script()["CLASSES"] == list(INFO.class_names)
