"""What the cache's tests share: caches of made-up records, and a process that fills one and may be killed.

Run as a script: `python -m tests.unit.cache.filling FOLDER LOG SEED`.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.cache.writer import BlockWriter

NAMES = ("manifest.json", "rows.bin", "blocks.bin", "locks")


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


def main(path: str, log: str, seed: str) -> None:
    """Fill what is missing, in an order of this process's own, until nothing is."""
    folder, order = CacheFolder.open(Path(path)), random.Random(seed)
    writer = BlockWriter(folder)
    noted = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while len(missing := folder.missing()):
        for block in map(int, order.sample(list(missing), len(missing))):
            if writer.take(block):
                time.sleep(order.uniform(0, 0.004))
                writer.write(block, records_of(folder, block))
                os.write(noted, f"{block}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
