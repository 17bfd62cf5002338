"""Rows that samples are contrasted with, drawn on the device as pure functions of counters."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from kdscale.api import Batch

__all__ = ["draw_negatives"]

TRIES = 3
"""Draws of a negative before one of the sample's own class is taken."""


def draw_negatives(batch: Batch, labels: Int64[Tensor, "N"], count: int) -> Int64[Tensor, "B K"]:
    """Draw other rows for each sample, with replacement, by (step, row): equal on every rank, and after a restart.

    Args:
        batch: whose rows, labels and step.
        labels: of every row, -1 where unknown; a row of the sample's own class is drawn again, up to twice.
        count: rows for each sample.
    """
    own = batch.rows[:, None]
    k = torch.arange(count, device=own.device)
    found = _draw(batch.step, own, k, 0, len(labels))
    for again in range(1, TRIES):
        same = labels[found] == batch.labels[:, None]
        found = torch.where(same, _draw(batch.step, own, k, again, len(labels)), found)
    return found


def _draw(step: int, own: Tensor, k: Tensor, again: int, rows: int) -> Tensor:
    """Any row but the own: a hash (SplitMix64's finaliser) as a distance from it; int64 wraps as uint64 does."""
    z = ((step * TRIES + again) * 0x632BE5AB + own) * 0x2545F4914F6CDD1D + k
    for multiplier, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    return (own + 1 + (z >> 33 & 0x7FFFFFFF) % (rows - 1)) % rows
