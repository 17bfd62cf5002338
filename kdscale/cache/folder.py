"""A cache on disk: made whole or not at all, found again, and which of its blocks are there.

    manifest.json       whose answers these are, and how they lie
    rows.bin            row numbers of the train set that are held, ascending, int64
    blocks.bin          16 bytes a block: its checksum, and a check of that entry (blocks.py)
    records-00000.bin   records by (view, position of the row in rows.bin)
    locks               empty; who writes a block locks a byte of it (locks.py)

docs/cache-format.md has it byte by byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale import atomic
from kdscale.cache import blocks, making
from kdscale.cache.manifest import Manifest, difference, hash_of_rows
from kdscale.errors import CacheCorrupt, CacheError, CacheMiss, CacheStale

__all__ = ["CacheFolder", "read_manifest"]

LINES = 12
"""Of a difference, in a message."""
DENSE = 8
"""An inverse table may have so many entries per row that is held; sparser rows are searched."""


class CacheFolder:
    """One cache, open."""

    def __init__(self, path: Path, manifest: Manifest, rows: NDArray[np.int64]) -> None:
        self.path = path
        self.manifest = manifest
        self.rows = rows
        self.rows.flags.writeable = False
        self.writable = os.access(path, os.W_OK)
        self._first_n = int(rows[-1]) == len(rows) - 1
        self._inverse: NDArray[np.int32] | None = None

    # ----------------------------------------------------------------------- finding and making

    @classmethod
    def open(cls, path: Path, expect: Mapping[str, Any] | None = None) -> CacheFolder:
        """Open a cache; its shards are not looked at: what they lack is found on reading and mended by filling.

        Args:
            path: the folder.
            expect: the identity it must have.

        Raises:
            CacheMiss: there is none.
            CacheStale: it holds other answers, or was made by a later kdscale.
            CacheCorrupt: its manifest or its rows are damaged.
        """
        manifest = read_manifest(path)
        if expect is not None and (lines := difference(expect, manifest.identity)):
            raise CacheStale(_stale(path, lines))
        return cls(path, manifest, _read_rows(path / "rows.bin", manifest))

    @classmethod
    def create(cls, root_of_caches: Path, manifest: Manifest, rows: NDArray[np.int64]) -> CacheFolder:
        """Find the cache of this manifest, or make it, empty; several processes may ask at once.

        One that is there keeps its shard size, and gets more views where more are asked for.

        Args:
            root_of_caches: where caches lie; made where it does not exist.
            manifest: of the cache.
            rows: (rows,) ascending row numbers that it describes.

        Raises:
            CacheError: rows and manifest do not fit, the folder cannot be written, or the disk is full: then nothing
                is left behind.
            CacheStale: the folder of this name holds something else.
            CacheCorrupt: it is damaged.
        """
        making.check_rows(manifest, rows)
        path = root_of_caches / manifest.folder_name
        if (path / "manifest.json").exists():
            found = cls._agreeing(path, manifest)
            if found.manifest.views >= manifest.views:
                return found
        with making.locked(path):
            making.make(path, manifest, rows)
            making.grow(path, cls._agreeing(path, manifest).manifest, manifest.views)
        return cls._agreeing(path, manifest)

    @classmethod
    def _agreeing(cls, path: Path, manifest: Manifest) -> CacheFolder:
        """Open a cache that must be `manifest`'s in all that cannot change."""
        found = cls.open(path, manifest.identity)
        same = replace(manifest, views=found.manifest.views, shard_records=found.manifest.shard_records)
        if same != found.manifest:
            raise CacheStale(_stale(path, difference(same.document(), found.manifest.document())))
        return found

    def reload(self) -> None:
        """Look whether the cache has got more views.

        Raises:
            CacheMiss: it was removed.
            CacheStale: it was replaced by another.
        """
        found = read_manifest(self.path)
        same = replace(self.manifest, views=found.views)
        if same != found:
            raise CacheStale(_stale(self.path, difference(same.document(), found.document())))
        self.manifest = found

    # ----------------------------------------------------------------------- what is there

    def has(self, block: int) -> bool:
        """Whether a block is there, by its entry."""
        return bool(self.sums(block, block + 1)[1][0])

    def missing(self, first: int = 0, last: int | None = None) -> NDArray[np.int64]:
        """Blocks first .. last - 1 (default: all) that are not there, by their entries; no record is read."""
        present = self.sums(first, self.manifest.blocks if last is None else last)[1]
        return np.flatnonzero(~present).astype(np.int64) + first

    def sums(self, first: int, last: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Checksums of blocks first .. last - 1, and which of these blocks are there."""
        return blocks.read_sums(self.path / "blocks.bin", self.manifest.digest, first, last)

    def intact(self, block: int) -> bool:
        """Whether a block is there and its bytes match; they are read from the file, not from a map."""
        sums, present = self.sums(block, block + 1)
        return bool(present[0] and blocks.checksum(self._read(block), self.manifest.digest, block) == sums[0])

    def _read(self, block: int) -> bytes:
        """The bytes of a block; fewer where its file ends early or is gone."""
        path, offset = self.place(block)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(self.manifest.block_bytes)
        except FileNotFoundError:
            return b""

    # ----------------------------------------------------------------------- where things lie

    def place(self, block: int) -> tuple[Path, int]:
        """The file of a block, and its offset in bytes."""
        record = block * self.manifest.block_rows
        shard, within = divmod(record, self.manifest.shard_records)
        return self.shard(shard), within * self.manifest.record_bytes

    def shard(self, index: int) -> Path:
        """The file of a shard."""
        return making.shard_file(self.path, index)

    def blocks_of_view(self, view: int) -> range:
        """The blocks of a view."""
        first = view * self.manifest.blocks_per_view
        return range(first, first + self.manifest.blocks_per_view)

    def rows_of(self, block: int) -> NDArray[np.int64]:
        """The rows of a block (n,), without padding."""
        first = block % self.manifest.blocks_per_view * self.manifest.block_rows
        return self.rows[first : first + self.manifest.block_rows]

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows (B,) stand in rows.bin.

        Raises:
            CacheMiss: one of them is not held.
        """
        outside = (rows < 0) | (rows > self.rows[-1])
        if outside.any():
            raise self._not_held(int(rows[outside][0]))
        if self._first_n:
            return rows
        places = self._places(rows)
        absent = self.rows[places] != rows
        if absent.any():
            raise self._not_held(int(rows[absent][0]))
        return places

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows stand or, for one that is not held, anywhere."""
        entries = int(self.rows[-1]) + 1
        if entries > DENSE * len(self.rows) or len(self.rows) > np.iinfo(np.int32).max:
            return np.searchsorted(self.rows, rows)
        if self._inverse is None:
            self._inverse = np.zeros(entries, np.int32)
            self._inverse[self.rows] = np.arange(len(self.rows), dtype=np.int32)
        return self._inverse[rows].astype(np.int64)

    def _not_held(self, row: int) -> CacheMiss:
        return CacheMiss(
            f"{self.path} holds no row {row}: it was made for {len(self.rows)} rows, {self.rows[0]} to "
            f"{self.rows[-1]}; a stage's rows must be among them (data.limit, data.val_fraction, data.split_seed)"
        )


# --------------------------------------------------------------------------- reading


def read_manifest(path: Path) -> Manifest:
    """The manifest of a cache's folder; nothing else of it is looked at. Raises: CacheError."""
    file = path / "manifest.json"
    try:
        document = atomic.read_json(file)
    except ValueError as error:
        raise CacheCorrupt(f"{file} cannot be read ({error}): remove the folder and fill it again") from error
    except OSError as error:
        raise CacheError(f"{file} cannot be read: {error.strerror}") from error
    if document is None:
        raise CacheMiss(
            f"{path} holds no cache: it was never filled, or it was removed; run the sweep again to fill it"
        )
    return Manifest.of(document, str(file))


def _read_rows(file: Path, manifest: Manifest) -> NDArray[np.int64]:
    """Read and not map: a file that is cut off under a map kills the process."""
    try:
        rows = np.fromfile(file, "<i8").astype(np.int64, copy=False)
    except FileNotFoundError:
        rows = np.zeros(0, np.int64)
    if len(rows) != manifest.rows or hash_of_rows(rows) != manifest.rows_hash:
        raise CacheCorrupt(f"{file} does not match the manifest's rows_hash: remove the folder and fill it again")
    return rows


def _stale(path: Path, lines: list[str]) -> str:
    more = [f"... and {len(lines) - LINES} more"] if len(lines) > LINES else []
    listed = "\n  ".join([*lines[:LINES], *more])
    return f"{path} holds other answers than what is asked for; fill another, or remove it:\n  {listed}"
