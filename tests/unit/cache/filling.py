"""What the cache's tests share: caches of made-up records, processes that write them, small disks."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.cache.writer import BlockWriter


def manifest_of(rows: NDArray[np.int64], **changes: Any) -> Manifest:
    """A small cache of these rows: 5 bytes a record, 4 rows a block, 2 blocks a shard, 2 views."""
    known: dict[str, Any] = {
        "identity": {"teacher": {"weights": "3f21ab", "digest": "77"}, "data": "digits", "record": {"fields": []}},
        "rows": len(rows),
        "rows_hash": hash_of_rows(rows),
        "record_bytes": 5,
        "block_rows": 4,
        "shard_records": 8,
        "views": 2,
    }
    return Manifest(**{**known, **changes})


def cache_of(root: Path, rows: NDArray[np.int64] | None = None, **changes: Any) -> CacheFolder:
    """An empty cache; of the rows 0..9 where none are given."""
    rows = np.arange(10, dtype=np.int64) if rows is None else rows
    return CacheFolder.create(root, manifest_of(rows, **changes), rows)


def records_of(folder: CacheFolder, block: int, salt: int = 0) -> NDArray[np.uint8]:
    """What a teacher would say to a block: a pure function of its number, without padding."""
    shape = (len(folder.rows_of(block)), folder.manifest.record_bytes)
    return np.random.default_rng([block, salt]).integers(1, 256, shape, np.uint8)


def fill(folder: CacheFolder, blocks: Any = None) -> CacheFolder:
    """Write blocks, by default all, in order."""
    writer = BlockWriter(folder)
    try:
        for block in range(folder.manifest.blocks) if blocks is None else blocks:
            assert writer.take(block)
            writer.write(block, records_of(folder, block))
    finally:
        writer.close()
    return folder


def bytes_of(folder: CacheFolder) -> dict[str, bytes]:
    """Every file of a cache."""
    return {path.name: path.read_bytes() for path in sorted(folder.path.iterdir())}


def fill_slowly(path: Path, log: Path, seed: int) -> None:
    """Fill what is missing until nothing is, in an order of this process's own; never returns.

    Every write is done in pieces (as the system is free to), with pauses between them, so that a kill falls into one.
    """
    order, write = random.Random(seed), os.pwrite

    def in_pieces(handle: int, data: memoryview, offset: int) -> int:
        time.sleep(order.uniform(0, 0.001))
        return write(handle, data[: order.randint(1, max(7, len(data) // 2))], offset)

    os.pwrite = in_pieces
    folder = CacheFolder.open(path)
    writer = BlockWriter(folder)
    noted = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while len(missing := folder.missing()):
        for block in order.sample(missing.tolist(), len(missing)):
            if writer.take(block):
                writer.write(block, records_of(folder, block))
                os.write(noted, f"{block}\n".encode())
        time.sleep(0.001)
    os._exit(0)
