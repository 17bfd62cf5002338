"""Files that are either whole or absent, whatever kills the writer.

Everything is written beside its destination, flushed to the disk and renamed; a reader never sees
half a file. Renames are atomic on POSIX file systems, NFS and Lustre included. Beside that: a lock that a killed
process lets go of, and whether there is room for what is to be written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "as_json",
    "aside",
    "demand_space",
    "is_disk_full",
    "locked",
    "no_locks",
    "read_json",
    "sync_file_system",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to be filled (as a file or a folder); rename it on success.

    An existing file is replaced; an existing folder is moved away first and then removed. On any
    error the side path is removed and `target` is left as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    side = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    _remove(side)
    try:
        yield side
        _sync_tree(side)
        if target.is_dir() and not target.is_symlink():
            old = side.with_suffix(".old")
            os.rename(target, old)
            os.rename(side, target)
            _remove(old)
        else:
            os.replace(side, target)
        sync_folder(target.parent)
    except BaseException:
        _remove(side)
        raise


@contextmanager
def locked(path: Path, timeout_s: float, problem: Callable[[str], Exception]) -> Iterator[None]:
    """Hold an exclusive lock for a moment, against threads and processes; a process that is killed lets go of it.

    Args:
        path: the lock file; made, and left for ever, as a lock on a removed file protects nothing.
        timeout_s: how long to wait for who has it.
        problem: makes an error of a message, where somebody keeps the lock or the file system has none.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(handle, path, time.monotonic() + timeout_s, problem)
        try:
            yield
        finally:
            # Not left to close(): a child forked meanwhile would share the handle and keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, deadline: float, problem: Callable[[str], Exception]) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise problem(f"{path} stays locked by another process: is one stopped (Ctrl-Z)?") from None
            time.sleep(0.005)
        except OSError as error:
            raise problem(no_locks(path, error)) from error


def no_locks(path: Path, error: OSError) -> str:
    """What is said of a file system without locks."""
    return f"{path}: no file locks here ({error.strerror}); mount it with flock, or give another --runs"


def demand_space(folder: Path, needed: int) -> None:
    """Raise the OSError of a full disk before it is one, where `needed` bytes are more than is free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")


def write_bytes(target: Path, content: bytes) -> None:
    """Replace `target` by `content`, whole or not at all."""
    with aside(target) as side:
        side.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Replace `target` by `content` in UTF-8, whole or not at all."""
    write_bytes(target, content.encode())


def write_json(target: Path, content: Any) -> None:
    """Replace `target` by `content` as indented JSON, whole or not at all."""
    write_text(target, as_json(content))


def as_json(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=1, sort_keys=False, allow_nan=True) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; `None` when it does not exist."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a full disk or quota; safetensors hides that in its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(f"(os error {number})" in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (fsync on the folder itself)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file_system(folder: Path) -> None:
    """Make all that was written to the file system of `folder` durable: for thousands of files, in place of each one's.

    Where the system cannot do that for one file system it does so for all.
    """
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None) if sys.platform == "linux" else None
    if syncfs is None:
        os.sync()
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(handle):
            os.sync()
    finally:
        os.close(handle)


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            _sync_tree(entry)
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
