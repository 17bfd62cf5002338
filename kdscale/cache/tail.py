"""Sums over all classes, and draws from those that are not kept, that come out the same wherever they are made.

A sum of floats depends on its order, and so on the batch, the device and the number of threads. Weights here are
integers, multiples of 2^-40 of the largest: sums and cumulative sums of them are exact in any order. A class whose
probability is below 2^-41 of the largest one's counts as having none.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from kdscale.draws import hash64, seed_of

__all__ = ["drawn_classes", "log_sums"]

UNIT = 2.0**40
"""The largest class's weight: as many of it as a record can have classes stay below 2^63."""


def log_sums(
    logits: Float[Tensor, "B C"], row_max: Float[Tensor, "B 1"], temperatures: tuple[float, ...]
) -> Float[Tensor, "B T"]:
    """Compute log sum exp((logit - row max) / t) for each temperature t: float32, from 0 to log C."""
    sums = [_weights(logits, row_max, t).sum(1) for t in temperatures]
    return (torch.stack(sums, 1).double() / UNIT).log().float()


def drawn_classes(
    logits: Float[Tensor, "B C"],
    known: Int64[Tensor, "B J"],
    rows: Int64[Tensor, "B"],
    view: int,
    temperatures: tuple[float, ...],
    draws: int,
) -> Int64[Tensor, "B TN"]:
    """Draw classes that are not `known`, with replacement, by their softmax at each temperature.

    By inverse CDF, each draw a function of (row, view, temperature's index, draw). Where every class is known there
    is nothing to draw: then it is a known one, which whoever counts passes over.
    """
    tail = logits.scatter(1, known, -torch.inf)
    top = tail.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    found = []
    for index, temperature in enumerate(temperatures):
        bounds = _weights(tail, top, temperature).cumsum(1)
        total = bounds[:, -1:]
        points = torch.from_numpy(_points(rows.cpu().numpy(), view, index, draws)).to(logits.device)
        aims = (points * total).long()  # below the total, also rounded: points end 2^-53 short of 1
        found.append(torch.where(total > 0, torch.searchsorted(bounds, aims, right=True), known[:, -1:]))
    return torch.cat(found, 1)


def _weights(logits: Float[Tensor, "B C"], top: Float[Tensor, "B 1"], temperature: float) -> Int64[Tensor, "B C"]:
    """exp((logit - top) / temperature) as multiples of 1 / UNIT."""
    return (((logits.double() - top.double()) / temperature).exp() * UNIT).round().long()


def _points(rows: NDArray[np.int64], view: int, index: int, draws: int) -> NDArray[np.float64]:
    """Uniform in [0, 1), (B, draws), multiples of 2^-53."""
    bits = [hash64(seed_of("cache", "tail", view, index, draw), rows) for draw in range(draws)]
    return (np.stack(bits, 1) >> np.uint64(11)) / 2.0**53
