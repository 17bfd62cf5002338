"""Checksums: when a block counts as there.

blocks.bin holds 16 bytes a block, two unsigned 64-bit integers, little endian: the checksum of the block's bytes and
a check of the entry itself. Both are seeded by the cache's digest and the block's number, so that neither a block's
bytes nor an entry mean anything at another place or in another cache. The check is a bijection of the checksum: an
entry of which only a part was written, over nothing or over an older entry, cannot pass.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["ABSENT", "ENTRY_BYTES", "checksum", "entry", "read_sums", "seed_of"]

ENTRY_BYTES = 16
ABSENT = bytes(ENTRY_BYTES)
_ODD = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: odd, hence invertible modulo 2^64."""
_MASK = 2**64 - 1


def seed_of(digest: str, block: int) -> int:
    """The seed of a block's checksum and check: the digest's first 8 bytes plus the block's number."""
    return (int(digest[:16], 16) + block) & _MASK


def checksum(data: Any, digest: str, block: int) -> int:
    """XXH3-64 of a block's bytes, padding included."""
    return xxhash.xxh3_64_intdigest(data, seed_of(digest, block))


def entry(total: int, digest: str, block: int) -> bytes:
    """The 16 bytes that make a block visible."""
    return struct.pack("<QQ", total, (total * _ODD + seed_of(digest, block)) & _MASK)


def read_sums(path: Path, digest: str, first: int, last: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Read the entries of blocks first .. last - 1 as they are now.

    The file is opened anew each time: over NFS that is what asks the server for what other machines wrote.

    Returns:
        The checksums (last - first,), and which of them are valid: those blocks are there.
    """
    entries = np.zeros((last - first, 2), np.uint64)
    try:
        found = np.fromfile(path, "<u8", 2 * len(entries), offset=ENTRY_BYTES * first)
        entries.reshape(-1)[: len(found)] = found
    except FileNotFoundError:  # then no block is there
        pass
    seeds = np.arange(first, last, dtype=np.uint64) + np.uint64(seed_of(digest, 0))
    return entries[:, 0], entries[:, 1] == entries[:, 0] * np.uint64(_ODD) + seeds
