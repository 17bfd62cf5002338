"""Counter-based randomness: every draw is a pure function of named counters.

Nothing that decides a number may read a generator with hidden state: a draw that depends only on
(seed, epoch, row, ...) is the same after a kill, on another rank, and in another backend.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["hash64", "seed_of", "uniform"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def seed_of(*parts: int | str) -> int:
    """Fold named counters into a 63-bit seed; distinct tuples give independent seeds.

    Source: the first 8 bytes of SHA-256 over the length-prefixed parts.
    """
    text = "".join(f"{len(str(part))}:{type(part).__name__[0]}{part};" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def hash64(seed: int, counters: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Hash each counter under `seed` to 64 uniform bits (SplitMix64's finaliser, twice).

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        z = counters.astype(np.uint64) * _GAMMA + np.uint64(seed & (2**64 - 1))
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
    return z


def uniform(*parts: int | str) -> float:
    """Draw one number in [0, 1) from the named counters."""
    return (seed_of(*parts) >> 10) / 2.0**53
