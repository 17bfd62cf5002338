"""How far records are from those that the same teacher gives now, and whether rounding explains it.

Rounding: one step of float16 at the size of a gap to the row's largest logit (`dense`, `topk`), and what float32 sums
lose when they are taken in another order, as another machine may.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.cache.layout import Layout

__all__ = ["Difference"]

F2_STEP = 2.0**-10
"""Between neighbours of float16, relative to their size."""
F2_LEAST = 2.0**-24
F4_SUMS = 2.0**-18
"""Relative error of float32 sums of some thousand terms in another order."""
FLIPS = 0.01
"""Share of kept or drawn classes of which rounding may make others: those that were as large, or at a draw's border."""

Bytes = NDArray[np.uint8]
Records = NDArray[Any]
"""Of the structured type of a layout."""
Reals = NDArray[np.float64]


@dataclass
class Difference:
    """The largest differences between records there and records made now, over all that were compared.

    Args:
        layout: of both.
    """

    layout: Layout
    records: int = 0
    equal: int = 0
    """Records of the same bytes."""
    logits: float = 0.0
    """Of kept logits, class by class; of one that only one side keeps, what it lies above the other's last."""
    probabilities: dict[float, float] = field(default_factory=dict)
    """Of kept classes, by temperature; of `topk` alone."""
    pooled: float = 0.0
    indices: int = 0
    """Places at which another class is kept."""
    drawn: int = 0
    """Drawn classes that differ."""
    beyond: int = 0
    """Records that rounding does not explain."""

    @property
    def wrong(self) -> bool:
        """Whether rounding does not explain it."""
        draws = self.records * self.layout.draws * len(self.layout.temperatures)
        flipped = self.indices > FLIPS * self.records * self.layout.k or self.drawn > FLIPS * draws
        return self.beyond > 0 or flipped

    def add(self, there: Bytes, now: Bytes) -> None:
        """Compare records (B, R) with those made now."""
        self.records += len(there)
        self.equal += int((there == now).all(1).sum())
        old, new = (np.ascontiguousarray(side).view(self.layout.dtype)[:, 0] for side in (there, now))
        apart, scale = self._logits(old, new)
        self.logits = max(self.logits, float(apart.max(initial=0)))
        explained = (apart <= scale).all(1)
        if self.layout.kind == "topk":
            explained &= self._sparse(old, new)
        if self.layout.pooled:
            explained &= self._pooled(old, new)
        self.beyond += int((~explained).sum())

    def _logits(self, old: Records, new: Records) -> tuple[Reals, Reals]:
        """Differences of logits (B, J), and what rounding may make of each."""
        dense = self.layout.kind != "topk"
        one, other = _gaps(old), _gaps(new)
        if dense and self.layout.kind == "dense_fp32":
            return np.abs(one - other), F4_SUMS * np.maximum(1, np.abs(other).max(1, keepdims=True)) + 0 * one
        size = np.maximum(1, np.abs(new["row_max"].astype(np.float64)))[:, None]
        apart = np.abs(one - other) if dense else _by_class(old, new, one, other)
        tops = np.abs(old["row_max"].astype(np.float64) - new["row_max"])[:, None]
        allowed = F2_LEAST + F2_STEP * np.maximum(np.abs(one), np.abs(other)) + F4_SUMS * size
        return np.concatenate([apart, tops], 1), np.concatenate([allowed, F4_SUMS * size], 1)

    def _sparse(self, old: Records, new: Records) -> NDArray[np.bool_]:
        """Compare what only `topk` records hold."""
        fields = self.layout.dtype.names or ()
        if "index" in fields:
            self.indices += int((old["index"] != new["index"]).sum())
            for number, temperature in enumerate(self.layout.temperatures):
                one, other = (np.exp(_gaps(s) / temperature - s["log_sum"][:, [number]]) for s in (old, new))
                largest = float(np.abs(one - other).max(initial=0))
                self.probabilities[temperature] = max(self.probabilities.get(temperature, 0.0), largest)
        if "drawn" in fields:
            self.drawn += int((old["drawn"] != new["drawn"]).sum())
        sums = np.abs(old["log_sum"].astype(np.float64) - new["log_sum"]).max(1)
        targets = [side["target"].astype(np.float64).reshape(len(side), -1) for side in (old, new)]
        row_max = np.maximum(1, np.abs(new["row_max"].astype(np.float64)))
        allowed = F2_LEAST + F2_STEP * np.abs(targets[1]) + F4_SUMS * row_max[:, None]
        found: NDArray[np.bool_] = (np.abs(targets[0] - targets[1]) <= allowed).all(1) & (sums <= F4_SUMS * row_max)
        return found

    def _pooled(self, old: Records, new: Records) -> NDArray[np.bool_]:
        one, other = old["pooled"].astype(np.float64), new["pooled"].astype(np.float64)
        apart = np.abs(one - other)
        self.pooled = max(self.pooled, float(apart.max(initial=0)))
        allowed = F2_LEAST + F2_STEP * np.abs(other) + F4_SUMS * np.abs(other).max(1, keepdims=True)
        found: NDArray[np.bool_] = (apart <= allowed).all(1)
        return found


def _gaps(side: Records) -> Reals:
    """Logits as they are stored (B, J): beneath the row's largest, or the teacher's own in `dense_fp32`."""
    names = side.dtype.names or ()
    return side["logit"].astype(np.float64) if "logit" in names else np.zeros((len(side), 0))


def _by_class(old: Records, new: Records, one: Reals, other: Reals) -> Reals:
    """Differences (B, K) of kept logits by class: of the k-th kept now, and of those that only the cache keeps."""
    if not one.shape[1]:
        return one
    same = old["index"][:, :, None] == new["index"][:, None, :]
    apart = np.where(same, np.abs(one[:, :, None] - other[:, None, :]), 0).max(1)
    only_new = np.where(same.any(1), 0, np.maximum(0, other - one[:, -1:]))
    only_old = np.where(same.any(2), 0, np.maximum(0, one - other[:, -1:]))
    return np.asarray(np.maximum(np.maximum(apart, only_new), only_old))
