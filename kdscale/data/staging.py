"""Converted data on a node's own disk (`data.stage_to`): copied once a node, whole and checked.

    STAGE_TO/kdscale-UID/<hash of the manifest>/    as data/store.py has it

Of a node's processes the first copies and the others wait, whichever jobs they belong to; what is there already is
used again. The copy changes no number, so where it cannot be made the data is read where it lies, and the log says so.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout

from kdscale import atomic
from kdscale.data.store import Store
from kdscale.errors import DataError

__all__ = ["folder_on_node", "open_staged"]

log = logging.getLogger(__name__)

LOCK_S = 3600.0
"""How long to wait for a process that copies."""
SIGN_S = 5.0
"""Between two signs of life while waiting."""
_CHUNK = 1 << 22


def open_staged(source: Path, stage_to: str | None, alive: Callable[[], None] = lambda: None) -> Store:
    """Open a store, or its copy on this node.

    Args:
        source: folder of the store.
        stage_to: `data.stage_to`.
        alive: called every few seconds while it is copied or waited for, which may take longer than anything else.

    Raises:
        DataError: the store is damaged; or this is a job, and `stage_to` names a variable that it does not have.
    """
    store = Store.open(source)
    folder = folder_on_node(stage_to) if stage_to else None
    if folder is None:
        return store
    try:
        return _copy_of(store, folder, alive)
    except (OSError, NotImplementedError) as error:
        why = "another process has been copying for an hour" if isinstance(error, Timeout) else error
        log.warning("data.stage_to: %s cannot hold the data (%s): it is read from %s", folder, why, source)
        return store


def folder_on_node(stage_to: str) -> Path | None:
    """The folder that `data.stage_to` means on this machine; None outside a job that lacks its variable.

    Raises:
        DataError: inside a job, which asked for it.
    """
    expanded = os.path.expanduser(os.path.expandvars(stage_to))
    lacking = re.search(r"\$\{?(\w+)", expanded)
    if lacking is None:
        return Path(expanded)
    said = f"data.stage_to: ${lacking.group(1)} is not set on {socket.gethostname()}"
    if "SLURM_JOB_ID" in os.environ:
        raise DataError(f"{said}: name a folder of the node's own disk, such as data.stage_to=/tmp, or leave it out")
    log.info("%s, which is no job: data is read where it lies", said)
    return None


def _copy_of(store: Store, folder: Path, alive: Callable[[], None]) -> Store:
    own = folder / f"kdscale-{os.getuid()}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own.stat().st_uid != os.getuid():  # /tmp is everybody's
        raise PermissionError(errno.EPERM, "it belongs to somebody else", str(own))
    target = own / xxhash.xxh3_128_hexdigest((store.path / "manifest.json").read_bytes())
    with _held(FileLock(own / f".{target.name}.lock"), alive):
        there = _opened(target)
        if there is not None:
            return there
        for debris in own.glob(f".{target.name}.*.tmp"):  # of processes that were killed
            shutil.rmtree(debris, ignore_errors=True)
        _copy(store, target, alive)
    return Store.open(target)


@contextmanager
def _held(lock: FileLock, alive: Callable[[], None]) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_S
    while True:
        alive()
        try:
            lock.acquire(timeout=SIGN_S)
            break
        except Timeout:
            if time.monotonic() > deadline:
                raise
    try:
        yield
    finally:
        lock.release()


def _opened(target: Path) -> Store | None:
    try:
        return Store.open(target)
    except (DataError, ValueError):
        return None


def _copy(store: Store, target: Path, alive: Callable[[], None]) -> None:
    begun, size = time.monotonic(), sum(store.manifest["files"].values())
    atomic.demand_space(target.parent, size)
    with atomic.aside(target) as side:
        side.mkdir()
        for name in [*store.manifest["files"], "manifest.json"]:
            if _copied(store.path / name, side / name, alive) != _on_disk(side / name, alive):
                raise OSError(errno.EIO, f"{name} reads back other bytes than were written", str(side))
    log.info("copied %.2f GB of data to %s in %.1f s", size / 1e9, target, time.monotonic() - begun)


def _copied(source: Path, target: Path, alive: Callable[[], None]) -> str:
    """Copy a file to the disk itself; returns the hash of what was read."""
    digest = xxhash.xxh3_128()
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            alive()
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or memory would answer for the disk
    return digest.hexdigest()


def _on_disk(path: Path, alive: Callable[[], None]) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            alive()
    return digest.hexdigest()
