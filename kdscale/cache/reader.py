"""Reads records: a batch is a few copies from memory maps, checked block by block on first touch."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from kdscale.cache.blocks import checksum
from kdscale.cache.folder import CacheFolder
from kdscale.errors import CacheCorrupt, CacheMiss

__all__ = ["CacheReader", "Progress"]

Progress = Callable[[int, int], None]
"""Told blocks done and blocks in all."""


class CacheReader:
    """Gathers records of one cache.

    A block's checksum is verified when this reader first touches it; what was verified is trusted as long as the map
    that it was read from. Before a map is touched the file's size is looked at, as reading behind the end of a file
    kills the process (SIGBUS). A window remains: a file that somebody cuts off between that look and the copy, some
    microseconds, or as long as it takes to verify the batch's new blocks. kdscale never makes a shard shorter.

    Maps are opened when they are first needed, so a reader can be made before a fork.
    """

    def __init__(self, folder: CacheFolder) -> None:
        self.folder = folder
        self._verified = np.zeros(folder.manifest.blocks, np.bool_)
        """Whether a block matched, in the map of its shard that is open."""
        self._maps: dict[int, mmap.mmap] = {}

    def gather(self, rows: NDArray[np.int64], view: int) -> NDArray[np.uint8]:
        """Copy out the records of rows (B,) under a view.

        Returns:
            (B, record_bytes), in memory of its own.

        Raises:
            CacheMiss: a row, view or block that is not there.
            CacheCorrupt: a block's bytes do not match, or its file ends early; `block` says which.
        """
        self._check_view(view)
        manifest = self.folder.manifest
        records = self.folder.positions(rows) + view * manifest.blocks_per_view * manifest.block_rows
        shards, within = np.divmod(records, manifest.shard_records)
        parts = [(int(shard), np.flatnonzero(shards == shard)) for shard in np.unique(shards)]
        for shard, chosen in parts:
            self._look_at(shard, int(within[chosen].max()) + 1)
        touched = records // manifest.block_rows
        while (fresh := ~self._verified[touched]).any():  # again where a shard was mapped anew meanwhile
            self._admit(np.unique(touched[fresh]))
        out = np.empty((len(rows), manifest.record_bytes), np.uint8)
        for shard, chosen in parts:
            out[chosen] = self._records(shard)[within[chosen]]
        return out

    def forget(self, block: int) -> None:
        """Look at a block again when it is touched next, in a new map of its file: after a repair."""
        self._drop(block // self._shard_blocks)

    def verify(self, blocks: Iterable[int] | None = None, told: Progress | None = None) -> list[int]:
        """Compare blocks with their checksums, in the files as they are now.

        Args:
            blocks: which (default: all); those that are absent are left out.
            told: called after each block.

        Returns:
            The blocks that are there and do not match.
        """
        self._reload()
        present = self.folder.sums(0, self.folder.manifest.blocks)[1]
        visible = np.flatnonzero(present) if blocks is None else [block for block in blocks if present[block]]
        bad = []
        for done, block in enumerate(map(int, visible), 1):
            if not self.folder.intact(block):
                bad.append(block)
                self.forget(block)
            if told is not None:
                told(done, len(visible))
        return bad

    # ----------------------------------------------------------------------- admitting blocks

    def _check_view(self, view: int) -> None:
        if view >= self.folder.manifest.views or len(self._verified) < self.folder.manifest.blocks:
            self._reload()
        if not 0 <= view < self.folder.manifest.views:
            raise CacheMiss(self._miss(f"view {view}: its views are 0 to {self.folder.manifest.views - 1}"))

    def _reload(self) -> None:
        """Take note of views that were added meanwhile."""
        self.folder.reload()
        more = np.zeros(self.folder.manifest.blocks - len(self._verified), np.bool_)
        self._verified = np.concatenate([self._verified, more])

    def _admit(self, fresh: NDArray[np.int64]) -> None:
        """Verify blocks, ascending, that are touched for the first time."""
        first = int(fresh[0])
        sums, present = self.folder.sums(first, int(fresh[-1]) + 1)
        for block in map(int, fresh):
            if not present[block - first]:
                raise self._absent(block)
            if self._checksum(block) != sums[block - first]:
                self._look_again(block)
            self._verified[block] = True

    def _look_again(self, block: int) -> None:
        """Judge a block that does not match by its file opened anew.

        Another machine may have written it a moment ago, or it is being mended, or its file was replaced.
        """
        self._drop(block // self._shard_blocks)
        self._look_at(block // self._shard_blocks, (block % self._shard_blocks + 1) * self.folder.manifest.block_rows)
        sums, present = self.folder.sums(block, block + 1)
        if not present[0]:
            raise self._absent(block)
        if self._checksum(block) != sums[0]:
            raise self._corrupt(block)

    def _checksum(self, block: int) -> int | None:
        """The checksum of a block's bytes; None where its map ends before."""
        manifest, offset = self.folder.manifest, self.folder.place(block)[1]
        found = self._maps.get(block // self._shard_blocks)
        if found is None or len(found) < offset + manifest.block_bytes:
            return None
        with memoryview(found) as whole:
            return checksum(whole[offset : offset + manifest.block_bytes], manifest.digest, block)

    # ----------------------------------------------------------------------- maps

    @property
    def _shard_blocks(self) -> int:
        return self.folder.manifest.shard_records // self.folder.manifest.block_rows

    def _look_at(self, shard: int, records: int) -> None:
        """Map a shard, anew where it has become shorter or where more of its records can be mapped than are.

        Args:
            shard: its number.
            records: how many from its beginning are needed.
        """
        found = self._maps.get(shard)
        if found is not None:
            size, needed = found.size(), records * self.folder.manifest.record_bytes
            if size >= len(found) >= min(size, needed):
                return
        self._drop(shard)
        try:
            with self.folder.shard(shard).open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # gone, or empty: its blocks are corrupt
            return

    def _drop(self, shard: int) -> None:
        """Close a shard's map, and trust nothing of what was read from it."""
        self._maps.pop(shard, None)
        self._verified[shard * self._shard_blocks : (shard + 1) * self._shard_blocks] = False

    def _records(self, shard: int) -> NDArray[np.uint8]:
        """A mapped shard as (records, record_bytes)."""
        each = self.folder.manifest.record_bytes
        held = len(self._maps[shard]) // each
        return np.frombuffer(self._maps[shard], np.uint8, held * each).reshape(held, each)

    # ----------------------------------------------------------------------- messages

    def _absent(self, block: int) -> CacheMiss:
        view = block // self.folder.manifest.blocks_per_view
        return CacheMiss(self._miss(f"block {block} of view {view}"))

    def _miss(self, what: str) -> str:
        return (
            f"{self.folder.path} does not hold {what}. Fill it: run python launch/sweep.py CONFIG again, "
            "or set fill: on_use"
        )

    def _corrupt(self, block: int) -> CacheCorrupt:
        file = self.folder.place(block)[0]
        problem = (
            f"block {block} does not match its checksum" if file.exists() else f"it is gone, and block {block} in it"
        )
        return CacheCorrupt(
            f"{file}: {problem}. `python launch/cache.py verify {self.folder.manifest.folder_name} --repair` makes it "
            "anew; so does a student that may write here",
            block,
        )
