"""Which rows train, validate and test: stratified by class, functions of `split_seed` and the labels alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdscale.config.schema import DataConfig
from kdscale.draws import hash64, seed_of

__all__ = ["Split", "carve", "test_rows"]


@dataclass(frozen=True)
class Split:
    """Row numbers of the full train set, ascending; the two are disjoint."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]


def carve(labels: NDArray[np.integer], data: DataConfig) -> Split:
    """Set `val_fraction` of the train set aside, then keep at most `limit` of the rest.

    The validation rows do not depend on `limit`, and a smaller limit keeps a subset of a larger one's rows:
    results at different limits are compared on the same footing. A transfer set begins where a limit of `transfer`
    ends: it shares no row with who trained on those.

    Args:
        labels: (N,) of the full train set.
        data: val_fraction, split_seed, limit, transfer.
    """
    arranged = _stratified(np.arange(len(labels), dtype=np.int64), labels, "val", data.split_seed)
    held_out = round(len(labels) * data.val_fraction)
    val, rest = arranged[:held_out], np.sort(arranged[held_out:])
    return Split(train=_limited(rest, labels, data.limit, data.split_seed, data.transfer or 0), val=np.sort(val))


def test_rows(labels: NDArray[np.integer], data: DataConfig) -> NDArray[np.int64]:
    """Rows of the test set, ascending: at most `limit_test`, a stratified nested prefix.

    Args:
        labels: (N,) of the full test set.
        data: limit_test, split_seed.
    """
    return _limited(np.arange(len(labels), dtype=np.int64), labels, data.limit_test, data.split_seed)


test_rows.__test__ = False  # type: ignore[attr-defined]  # its name makes pytest take it for a test


def _limited(
    rows: NDArray[np.int64], labels: NDArray[np.integer], limit: int | None, split_seed: int, first: int = 0
) -> NDArray[np.int64]:
    if first == 0 and (limit is None or limit >= len(rows)):
        return rows
    return np.sort(_stratified(rows, labels, "limit", split_seed)[first:][:limit])


def _stratified(
    rows: NDArray[np.int64], labels: NDArray[np.integer], purpose: str, split_seed: int
) -> NDArray[np.int64]:
    """Arrange rows so that every prefix holds the classes in proportion.

    Each class is shuffled; its k-th of n rows gets the place (k + 1/2) / n, and places are sorted.
    """
    keys = hash64(seed_of(purpose, split_seed), rows)
    classes = labels[rows]
    shuffled = np.lexsort((rows, keys, classes))
    _, first, counts = np.unique(classes[shuffled], return_index=True, return_counts=True)
    within = np.arange(len(rows)) - np.repeat(first, counts)
    place = (within + 0.5) / np.repeat(counts, counts)
    return rows[shuffled][np.lexsort((keys[shuffled], place))]
