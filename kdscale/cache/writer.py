"""Fills a cache block by block, side by side with other processes, any of which may die at any moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.cache import blocks
from kdscale.cache.folder import CacheFolder
from kdscale.cache.locks import REFUSED, BlockLocks, read_only
from kdscale.errors import CacheError, CacheMiss, ShapeError

__all__ = ["BlockWriter"]


class BlockWriter:
    """The one writer of this process on a cache: take a block, compute its records, write it.

    A block becomes visible by its entry, written after its records have reached the disk. Who dies before that
    leaves nothing that anybody would read, and his lock goes with him.

    Raises:
        CacheError: the folder cannot be written, or this process has a writer on it already.
    """

    def __init__(self, folder: CacheFolder) -> None:
        self.folder = folder
        self._locks = BlockLocks(folder.path / "locks")

    def take(self, block: int) -> bool:
        """Get the right to write a block; True again for one that this writer holds.

        Returns:
            False when another live process has it, or it is there already.

        Raises:
            CacheMiss: the cache has no such block.
            CacheError: the file system has no locks.
        """
        self._check(block)
        if self.folder.has(block) or not self._locks.take(block):
            return False
        if self.folder.has(block):  # written between the look and the lock
            self._locks.release(block)
            return False
        return True

    def write(self, block: int, records: NDArray[np.uint8]) -> None:
        """Write a block that was taken, make it visible, and let go of it, also when that fails.

        Args:
            block: its number.
            records: (n, record_bytes) of its rows, or of a whole block, of which what is behind its rows is dropped.

        Raises:
            OSError: the disk refused, with the path; the block is then absent.
            CacheError: the folder cannot be written, or the block was not taken.
            ShapeError: these are not the block's records.
        """
        if block not in self._locks.held:
            raise CacheError(f"{self.folder.path}: block {block} is written without having been taken")
        try:
            padded = self._padded(block, records)
            total = blocks.checksum(padded, self.folder.manifest.digest, block)
            self._put(*self.folder.place(block), padded.data.cast("B"))
            self._put_entry(block, blocks.entry(total, self.folder.manifest.digest, block))
        finally:
            self._locks.release(block)

    def release(self, block: int) -> None:
        """Let go of a block without writing it."""
        self._locks.release(block)

    def discard(self, block: int) -> bool:
        """Make a corrupt block absent, so that it can be taken and written again.

        Returns:
            Whether it is absent now: False when another process has it, or its bytes do match (somebody else was
            quicker).

        Raises:
            OSError: the disk refused.
            CacheError: the folder cannot be written.
        """
        self._check(block)
        held = block in self._locks.held
        if not held and not self._locks.take(block):
            return False
        try:
            if self.folder.intact(block):
                return False
            self._put_entry(block, blocks.ABSENT)
            return True
        finally:
            if not held:
                self._locks.release(block)

    def close(self) -> None:
        """Let go of everything; does nothing the second time."""
        self._locks.close()

    def _check(self, block: int) -> None:
        if block >= self.folder.manifest.blocks:
            self.folder.reload()
        if not 0 <= block < self.folder.manifest.blocks:
            views = self.folder.manifest.views
            raise CacheMiss(f"{self.folder.path} has {self.folder.manifest.blocks} blocks in {views} views, no {block}")

    def _padded(self, block: int, records: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A whole block, (block_rows, record_bytes): zero bytes behind the last row."""
        manifest, rows = self.folder.manifest, len(self.folder.rows_of(block))
        if records.shape not in {(rows, manifest.record_bytes), (manifest.block_rows, manifest.record_bytes)}:
            wanted = (rows, manifest.record_bytes)
            raise ShapeError(f"{self.folder.path}: block {block} takes records of shape {wanted}, not {records.shape}")
        padded = np.zeros((manifest.block_rows, manifest.record_bytes), np.uint8)
        padded[:rows] = records[:rows]
        return padded

    def _put_entry(self, block: int, entry: bytes) -> None:
        self._put(self.folder.path / "blocks.bin", block * blocks.ENTRY_BYTES, memoryview(entry))

    def _put(self, path: Path, offset: int, data: memoryview) -> None:
        try:
            _write(path, offset, data)
        except OSError as error:
            if error.errno in REFUSED:
                raise read_only(self.folder.path, error) from error
            raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, offset: int, data: Any) -> None:
    """Write bytes at an offset; they are on the disk when this returns.

    O_DSYNC and not fdatasync afterwards: an NFS client may send the whole page around what was written, with what
    it believes of its neighbours, other writers' blocks among them; it does not for files opened so.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o666)
    try:
        while data:
            written = os.pwrite(handle, data, offset)
            data, offset = data[written:], offset + written
    finally:
        os.close(handle)
