"""MobileNetV2 against the count of the literature's half-width student."""

from __future__ import annotations

import pytest
import torch

from kdscale.models.mobilenet_v2 import MobileNetV2


def test_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = MobileNetV2(classes=100)
    assert sum(p.numel() for p in model.parameters()) == 812_836


@pytest.mark.parametrize("size", [28, 32])
def test_takes_grey_images(size: int) -> None:
    assert MobileNetV2(classes=4, channels=1, width=0.25)(torch.zeros(2, 1, size, size)).shape == (2, 4)


def test_refuses_widths_without_a_channel() -> None:
    with pytest.raises(ValueError, match="too small"):
        MobileNetV2(classes=10, width=0.01)
