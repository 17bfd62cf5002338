from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdscale.config.schema import Expectation
from kdscale.train.pixels import PixelFigures
from kdscale.train.records import missed

HALF = PixelFigures.of(torch.tensor([[1, 1], [0, 2]]), samples=1)
"""Intersections over unions of 1/2 and 2/3."""


@pytest.mark.parametrize(
    ("wanted", "said"), [(0.59, ""), (0.58, ""), (0.5, "miou 0.5833 on test, expected 0.5 within 0.01")]
)
def test_pixels_are_expected_by_their_own_figure(wanted: float, said: str) -> None:
    assert missed(Expectation(miou=wanted), HALF) == said


@pytest.mark.parametrize("figures", [{}, {"top1": 0.5, "miou": 0.5}])
def test_one_figure_is_expected(figures: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="say top1, or miou where pixels have classes"):
        Expectation(within=0.01, **figures)
