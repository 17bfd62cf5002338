"""Order: a permutation that depends on seed and epoch alone, cut into the same global batches for any world."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdscale.data.order import epoch_order, rank_rows

ROWS = np.arange(3, 1003, dtype=np.int64)


def test_an_epoch_holds_every_row_once() -> None:
    assert np.array_equal(np.sort(epoch_order(ROWS, seed=0, epoch=0)), ROWS)


def test_each_seed_and_epoch_has_its_own_order() -> None:
    orders = {tuple(epoch_order(ROWS, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_the_order_depends_on_which_rows_there_are_and_not_on_their_arrangement() -> None:
    assert np.array_equal(epoch_order(ROWS[::-1].copy(), 5, 2), epoch_order(ROWS, 5, 2))


def hashed(seed: int, row: int) -> int:
    """SplitMix64's finaliser twice, in Python's own integers."""
    z = (row * 0x9E3779B97F4A7C15 + seed) % 2**64
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z ^= z >> 31
    return z


def test_the_order_is_that_of_the_rows_hashes() -> None:
    seed = int.from_bytes(hashlib.sha256(b"5:sorder;1:i7;1:i2;").digest()[:8], "little") >> 1
    expected = sorted(range(50), key=lambda row: hashed(seed, row))
    assert epoch_order(np.arange(50, dtype=np.int64), seed=7, epoch=2).tolist() == expected


def test_the_order_looks_random() -> None:
    """Neighbours in the order are no nearer to each other than chance has them."""
    order = epoch_order(np.arange(20_000, dtype=np.int64), 0, 0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


@given(world=st.sampled_from([1, 2, 3, 4, 6, 12]), batch=st.integers(0, 7))
def test_the_ranks_shares_put_together_are_the_global_batch(world: int, batch: int) -> None:
    order = epoch_order(ROWS, 1, 1)
    shares = [rank_rows(order, batch, 12, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate(shares), order[12 * batch : 12 * (batch + 1)])
    assert {len(share) for share in shares} == {12 // world}
