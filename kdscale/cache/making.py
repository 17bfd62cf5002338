"""Makes a cache's files, whole or not at all, and longer when it gets more views."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdscale import atomic
from kdscale.cache import blocks
from kdscale.cache.locks import REFUSED, alone, read_only
from kdscale.cache.manifest import Manifest, hash_of_rows
from kdscale.errors import CacheCorrupt, CacheError

__all__ = ["check_rows", "grow", "locked", "make", "shard_file"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one who makes or grows the cache at `path`; its root is made.

    Raises:
        CacheError: what the operating system refused meanwhile, with the folder and the mend.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_name(f".{path.name}.lock")):
            yield


def check_rows(manifest: Manifest, rows: NDArray[np.int64]) -> None:
    """Raise CacheError where rows are not those of the manifest, or not ascending."""
    if len(rows) != manifest.rows or hash_of_rows(rows) != manifest.rows_hash:
        raise CacheError(f"these {len(rows)} rows are not those of the manifest ({manifest.rows}, by their hash)")
    if rows[0] < 0 or (np.diff(rows) <= 0).any():
        raise CacheError("the rows of a cache must be row numbers in ascending order, each once")


def make(path: Path, manifest: Manifest, rows: NDArray[np.int64]) -> None:
    """Make the folder, without a block, unless it is there; the caller holds `locked(path)`."""
    if (path / "manifest.json").exists():
        return
    if path.exists():
        raise CacheCorrupt(f"{path} has lost its manifest: remove the folder and fill it again")
    for debris in path.parent.glob(f".{path.name}.*.tmp"):  # of processes that were killed here
        shutil.rmtree(debris, ignore_errors=True)
    atomic.demand_space(path.parent, manifest.blocks * manifest.block_bytes)
    side = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        side.mkdir()
        atomic.write_bytes(side / "rows.bin", rows.astype("<i8").tobytes())
        _lengthen(side / "locks", 0)  # never opened here again: closing a handle drops this process's locks
        _lay_out(side, manifest)
        atomic.write_json(side / "manifest.json", manifest.document())
        side.rename(path)
        atomic.sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(side, ignore_errors=True)
        raise


def grow(path: Path, old: Manifest, views: int) -> None:
    """Raise the number of views of the cache that `old` describes; the caller holds `locked(path)`.

    The manifest goes first: who is killed in between leaves files that are too short, which reading bears and
    filling mends, and never bytes that belong to no view.
    """
    if views > old.views:
        grown = replace(old, views=views)
        atomic.demand_space(path, (grown.blocks - old.blocks) * grown.block_bytes)
        for debris in path.glob(".manifest.json.*.tmp"):  # of processes that were killed here
            debris.unlink(missing_ok=True)
        atomic.write_json(path / "manifest.json", grown.document())
        _lay_out(path, grown)


def shard_file(path: Path, index: int) -> Path:
    """The file of a shard of the cache at `path`."""
    return path / f"records-{index:05d}.bin"


def _lay_out(path: Path, manifest: Manifest) -> None:
    """Give every file its length, never less than it has; holes take no space until blocks are written."""
    _lengthen(path / "blocks.bin", manifest.blocks * blocks.ENTRY_BYTES)
    records = manifest.blocks * manifest.block_rows
    for index in range(manifest.shards):
        held = min(manifest.shard_records, records - index * manifest.shard_records)
        _lengthen(shard_file(path, index), held * manifest.record_bytes)
    atomic.sync_folder(path)


def _lengthen(file: Path, size: int) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(handle).st_size < size:
            os.ftruncate(handle, size)
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the operating system says into a CacheError that names the folder and the mend."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSED:
            raise read_only(path, error) from error
        problem = "the disk is full" if atomic.is_disk_full(error) else "the cache cannot be written"
        raise CacheError(
            f"{path}: {problem} ({error}). Nothing was left behind. Free some space, or choose another place with "
            "--runs or $KDSCALE_RUNS; fewer views and a smaller record need less"
        ) from error
