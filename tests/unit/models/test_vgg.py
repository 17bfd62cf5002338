"""VGG against the counts of the literature's vgg8 and vgg13."""

from __future__ import annotations

import pytest
import torch

from kdscale.models.vgg import Vgg


@pytest.mark.parametrize(("depth", "count"), [(8, 3_965_028), (13, 9_462_180)])
def test_has_the_published_number_of_parameters(depth: int, count: int) -> None:
    with torch.device("meta"):
        model = Vgg(classes=100, depth=depth)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("size", "last"), [(28, 3), (32, 4), (64, 4), (128, 8)])
def test_halves_once_more_where_images_are_large(size: int, last: int) -> None:
    with torch.device("meta"):
        model = Vgg(classes=10)
        maps: list[torch.Size] = []
        model.stage4.register_forward_hook(lambda *given: maps.append(given[2].shape))
        model(torch.zeros(1, 3, size, size))
    assert maps[0][-1] == last


def test_refuses_other_depths() -> None:
    with pytest.raises(ValueError, match="8, 11, 13, 16, 19"):
        Vgg(classes=10, depth=12)
