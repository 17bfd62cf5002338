"""Pictures of every kind become what training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kdscale.errors import ShapeError
from kdscale.library.pictures import Preprocess, with_preprocessing
from kdscale.nn.input import NetworkInput
from kdscale.nn.network import Network

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (8, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (8, 8, 3), np.uint8)


def preprocess(channels: int = 1, size: int = 8) -> Preprocess:
    seen = NetworkInput(
        given=channels, given_size=8, channels=channels, size=size, mean=[0.5] * channels, std=[0.25] * channels
    )
    return Preprocess(seen)


def normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.5) / 0.25


@pytest.mark.parametrize("kind", ["array", "array with a channel", "tensor", "flat tensor", "picture", "file", "batch"])
def test_every_kind_of_picture_is_the_same_picture(kind: str, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    given = {
        "array": GREY, "array with a channel": GREY[:, :, None], "tensor": torch.from_numpy(GREY)[None],
        "flat tensor": torch.from_numpy(GREY), "picture": Image.fromarray(GREY), "file": tmp_path / "grey.png",
        "batch": torch.from_numpy(GREY)[None, None],
    }[kind]  # fmt: skip
    torch.testing.assert_close(preprocess()(given), normalised(torch.from_numpy(GREY))[None, None])


def test_colours_and_several_at_once() -> None:
    found = preprocess(3)([COLOUR, Image.fromarray(COLOUR), torch.from_numpy(COLOUR).permute(2, 0, 1)])
    wanted = normalised(torch.from_numpy(COLOUR).permute(2, 0, 1))
    torch.testing.assert_close(found, wanted.expand(3, -1, -1, -1))


def test_another_size_is_shrunk_cut_and_padded_as_data_sets_are() -> None:
    stored = preprocess().stored(np.full((20, 32), 200, np.uint8))
    assert stored.shape == (1, 1, 8, 8)
    assert stored.unique().tolist() == [200]
    padded = preprocess().stored(np.full((4, 4), 200, np.uint8))
    assert padded[0, 0, 0].tolist() == [0] * 8, "small ones are padded, never enlarged"
    assert padded[0, 0, 4].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]


def test_the_network_s_own_size() -> None:
    assert preprocess(size=12)(GREY).shape == (1, 1, 12, 12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GREY.astype(np.float32), r"uint8 pixels \(H, W\), not float32"),
        (COLOUR, r"uint8 pixels \(H, W\), not uint8 \(8, 8, 3\)"),
        (torch.zeros(2, 1, 9, 9, dtype=torch.uint8), r"a batch must be uint8 \(B, 1, 8, 8\), not uint8 \(2, 1, 9, 9\)"),
    ],
    ids=["floats", "colours", "another size"],
)
def test_what_is_no_such_picture_is_refused(given: object, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        preprocess()(given)  # type: ignore[arg-type]


def test_logits_come_in_the_order_of_the_data_s_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    seen = NetworkInput(given=1, given_size=8, channels=1, size=8, mean=[0.0], std=[1.0])
    network = Network(model, seen, class_map=[2, 0]).eval()
    usable = with_preprocessing(network, ["cat", "dog"])
    images = torch.from_numpy(GREY)[None, None]
    assert usable.classes == ("cat", "dog")
    torch.testing.assert_close(usable(usable.preprocess(images)), network(images).logits)
    assert len(list(usable.parameters())) == 2, "none stands twice"
