"""Who writes a block, and who changes a folder.

The right to write block b is a lock on byte b of the empty file `locks`, by POSIX record locks (fcntl.lockf). A lock
file per block would outlive its killed holder, and then somebody has to judge whether that one still lives, perhaps
on another machine. These locks the kernel drops when the holder dies, however it dies; over NFS the server does when
the client's lease ends. They cost nothing on disk, and one file serves millions of blocks.

They have one trap: a process loses all its locks on a file as soon as it closes any handle to it, whoever opened
that. Hence a file that nothing else ever opens, and one writer per process and folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import AbstractContextManager
from pathlib import Path

from kdscale import atomic
from kdscale.errors import CacheError

__all__ = ["REFUSED", "BlockLocks", "alone", "read_only"]

WAIT_S = 60.0
_OPEN: set[tuple[int, int, int]] = set()
"""Process id, device and inode of each lock file that is open; a forked child has none of its parent's locks."""


class BlockLocks:
    """This process's locks on the blocks of one cache.

    Raises:
        CacheError: the folder cannot be written to, or this process writes it already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: set[int] = set()
        if path.exists() and _key(path.stat()) in _OPEN:  # asked before: closing a handle would drop the other's locks
            raise CacheError(f"{path.parent} is written by this process already: close that writer first")
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise read_only(path.parent, error) from error
        self._key = _key(os.fstat(self._handle))
        _OPEN.add(self._key)

    def take(self, block: int) -> bool:
        """Lock a block; False when another process has it.

        Raises:
            CacheError: the file system has no locks.
        """
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise CacheError(atomic.no_locks(self.path, error)) from error
        self.held.add(block)
        return True

    def release(self, block: int) -> None:
        """Unlock a block; does nothing where it is not held."""
        if block in self.held:
            self.held.remove(block)
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, block)

    def close(self) -> None:
        """Unlock all; does nothing the second time."""
        if self._handle >= 0:
            _OPEN.discard(self._key)
            self.held.clear()
            os.close(self._handle)
            self._handle = -1


def _key(found: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), found.st_dev, found.st_ino


def alone(path: Path, wait_s: float = WAIT_S) -> AbstractContextManager[None]:
    """Hold an exclusive lock for a moment, against threads and processes; a process that is killed lets go of it.

    Raises:
        CacheError: the file system has no locks, or somebody keeps this one.
    """
    return atomic.locked(path, wait_s, CacheError)


REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""What the operating system says of what may not be written."""


def read_only(folder: Path, error: OSError) -> CacheError:
    """The error of a cache that was to be written and cannot be."""
    return CacheError(
        f"{folder} cannot be written ({error.strerror}): what it lacks must be filled by its owner; "
        "or fill a cache of your own under another --runs"
    )
