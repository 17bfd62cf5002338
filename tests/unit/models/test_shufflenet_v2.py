"""ShuffleNetV2 against the count of the literature's student."""

from __future__ import annotations

import pytest
import torch

from kdscale.models.shufflenet_v2 import ShuffleNetV2, _Shuffle


def test_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = ShuffleNetV2(classes=100)
    assert sum(p.numel() for p in model.parameters()) == 1_355_528


def test_the_shuffle_interleaves_halves() -> None:
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert _Shuffle()(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match=r"0\.5, 1\.0, 1\.5, 2\.0"):
        ShuffleNetV2(classes=10, width=0.7)
