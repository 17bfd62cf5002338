"""Which rows a step sees: a function of (seed, epoch), cut into global batches and then into ranks.

A global batch holds the same rows whatever the number of ranks; a rank's share is a contiguous slice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdscale.draws import hash64, seed_of

__all__ = ["epoch_order", "rank_rows"]


def epoch_order(rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle `rows` for one epoch: sorted by a hash of each row, so every version of NumPy agrees.

    The order does not depend on how `rows` were arranged, only on which they are. The hash maps rows one to
    one, so there are no ties for a sorting algorithm to break in its own way.
    """
    return rows[np.argsort(hash64(seed_of("order", seed, epoch), rows))]


def rank_rows(order: NDArray[np.int64], batch: int, batch_size: int, rank: int, world: int) -> NDArray[np.int64]:
    """One rank's rows of global batch number `batch`.

    Args:
        order: an epoch's rows.
        batch: index of the global batch within the epoch.
        batch_size: global, a multiple of `world`.
        rank: this process among `world`.
        world: number of processes.
    """
    share = batch_size // world
    first = batch * batch_size + rank * share
    return order[first : first + share]
