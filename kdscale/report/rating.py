"""What networks are rated by: top-1, or mIoU where pixels have classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["RATINGS", "rated", "said"]

RATINGS = {"top1": "top-1", "miou": "mIoU"}
"""The figure's name in a stage's results, and its word."""


def rated(results: Mapping[str, Any]) -> tuple[str, float] | None:
    """The figure's word and its value; None before there is one."""
    return next(((word, float(results[k])) for k, word in RATINGS.items() if results.get(k) is not None), None)


def said(results: Mapping[str, Any]) -> str:
    """The same in a phrase, such as `top-1 0.9312`; empty before there is one."""
    found = rated(results)
    return "" if found is None else f"{found[0]} {found[1]:.4f}"
