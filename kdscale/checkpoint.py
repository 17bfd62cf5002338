"""Checkpoints that are whole or absent, and verified before they are believed.

    checkpoints/step_00001234/   the engine's files, loop.json, manifest.json (size and hash of each file)

All ranks call `save` and `load` together: each may write files of its own, and all learn of one rank's
failure. A damaged checkpoint is put aside, loudly, and the one before it is used.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from kdscale import atomic, ranks
from kdscale.errors import CheckpointError, CheckpointMismatch

__all__ = ["Writer", "file_hash", "load", "newest", "save", "settle", "usable"]

Writer = Callable[[Path], None]
log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_FLUSHES = 4
"""Files that are flushed to the disk at once."""
_tidying: list[threading.Thread] = []


def save(folder: Path, loop: dict[str, Any], write: Writer, *, keep: int, is_mine: Callable[[], bool]) -> Path:
    """Write the checkpoint of `loop["step"]`; called by all ranks, at a step boundary.

    Args:
        folder: the stage's checkpoints folder.
        loop: JSON-able state of the training loop; must hold `step` and `digest`.
        write: writes the engine's state into the folder that it is given (every rank its own files).
        keep: how many checkpoints to keep, this one included.
        is_mine: whether this attempt still owns the stage; asked right before the commit.

    Raises:
        CheckpointError: the disk stayed full after older checkpoints were given up (the newest stays whole),
            or another attempt took the stage over.
    """
    target = folder / f"step_{loop['step']:08d}"
    settle()
    problem = _attempt(target, loop, write, is_mine)
    if problem is not None and atomic.is_disk_full(problem):
        log.warning("no space for %s: giving up older checkpoints of this stage", target)
        if ranks.rank() == 0:
            _retire(folder, keep=1)
            _remove_all(folder.glob("damaged_*"))
            settle()
        problem = _attempt(target, loop, write, is_mine)
    if problem is not None:
        older = newest(folder)
        raise CheckpointError(
            f"cannot write {target}: {problem}. "
            + (f"{older} is whole and will be resumed from" if older else "There is no earlier checkpoint")
            + "; free some space (launch/runs.py du, launch/runs.py gc) and give the same command again"
        ) from problem
    if ranks.rank() == 0:
        _retire(folder, keep)
    return target


def settle() -> None:
    """Wait until retired checkpoints are off the disk; `save` returns before that."""
    while _tidying:
        _tidying.pop().join()


def load(folder: Path, digest: str, read: Writer) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; called by all ranks.

    Returns:
        The loop's state, or None when there is no usable checkpoint.

    Raises:
        CheckpointMismatch: the checkpoint belongs to another stage.
    """
    path = ranks.broadcast_object(_newest_whole(folder) if ranks.rank() == 0 else None)
    if path is None:
        return None
    loop: dict[str, Any] = json.loads((path / "loop.json").read_text())
    if loop["digest"] != digest:
        raise CheckpointMismatch(f"{path} belongs to stage {loop['digest'][:12]}, not to {digest[:12]}; remove it")
    read(path)
    return loop


def newest(folder: Path) -> Path | None:
    """The newest committed checkpoint, unverified."""
    return next(iter(_committed(folder)), None)


def usable(folder: Path, step: int) -> Iterator[Path]:
    """Checkpoints of at most `step` steps that are whole, from the newest on; nothing is put aside or written."""
    for path in _committed(folder):
        if int(path.stem.removeprefix("step_")) <= step and _damage(path) is None:
            yield path


def file_hash(path: Path) -> str:
    """128-bit xxHash of a file's bytes, in hexadecimal."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def _attempt(target: Path, loop: dict[str, Any], write: Writer, is_mine: Callable[[], bool]) -> OSError | None:
    """Write once; every rank returns the same verdict."""
    side = target.with_name(f".{target.name}.tmp")
    try:
        problem = _on_rank0(lambda: _fresh(side))
        problem = problem or _on_every_rank(lambda: write(side))
        return problem or _on_rank0(lambda: _commit(side, target, loop, is_mine))
    finally:
        if ranks.rank() == 0:
            shutil.rmtree(side, ignore_errors=True)  # renamed away, unless something went wrong


def _commit(side: Path, target: Path, loop: dict[str, Any], is_mine: Callable[[], bool]) -> None:
    (side / "loop.json").write_text(json.dumps(loop))
    paths = sorted(side.iterdir())
    with ThreadPoolExecutor(_FLUSHES) as flushing:  # the disk writes while the hashes are computed
        flushed = [flushing.submit(_flush, path) for path in paths]
        files = {path.name: {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)} for path in paths}
    for one in flushed:
        one.result()
    (side / _MANIFEST).write_text(json.dumps({"schema": 1, "step": loop["step"], "files": files}))
    _flush(side / _MANIFEST)
    atomic.sync_folder(side)
    if not is_mine():
        raise CheckpointError(f"another attempt has taken this stage over; {target.name} is not written")
    _replace(target, side)
    atomic.sync_folder(target.parent)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _replace(target: Path, side: Path) -> None:
    """Rename `side` to `target`; a checkpoint of the same step stays readable, as .old, until that is done."""
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(side, target)
    shutil.rmtree(old, ignore_errors=True)


def _fresh(side: Path) -> None:
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)


def _on_rank0(act: Callable[[], None]) -> OSError | None:
    return _shared(_try(act) if ranks.rank() == 0 else None)


def _on_every_rank(act: Callable[[], None]) -> OSError | None:
    return _shared(_try(act))


def _try(act: Callable[[], None]) -> Exception | None:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - carried to all ranks, which raise it together
        return _disk_error(error)
    return None


def _disk_error(error: Exception) -> Exception:
    """The OSError behind a library's own exception."""
    if atomic.is_disk_full(error) and not isinstance(error, OSError):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def _shared(problem: Exception | None) -> OSError | None:
    """The first rank's problem, known to all; anything but an OSError is raised everywhere."""
    found = next((p for p in ranks.gather_objects(problem) if p is not None), None)
    if found is not None and not isinstance(found, OSError):
        raise found
    return found


def _committed(folder: Path) -> list[Path]:
    """Checkpoints from the newest on; their names appear by one rename, so each was whole once."""
    return sorted(folder.glob("step_*"), key=lambda path: (path.stem, path.suffix != ".old"), reverse=True)


def _newest_whole(folder: Path) -> Path | None:
    for path in _committed(folder):
        damage = _damage(path)
        if damage is None:
            return path
        aside = path.with_name(f"damaged_{path.name}")
        log.warning("CHECKPOINT DAMAGED: %s (%s); put aside as %s, falling back", path, damage, aside.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    return None


def _damage(path: Path) -> str | None:
    try:
        files = json.loads((path / _MANIFEST).read_text())["files"]
        hashes = {name: (entry["bytes"], entry["xxh3_128"]) for name, entry in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        return f"its manifest cannot be read: {error!r}"
    for name, expected in hashes.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if (file.stat().st_size, file_hash(file)) != expected:
            return f"{name} does not match its hash"
    return None


def _retire(folder: Path, keep: int) -> None:
    """Keep the newest checkpoints; what killed attempts left half written goes too.

    Large files take long to remove: retired ones are put out of sight by a rename, and removed while training goes on.
    """
    for path in _committed(folder)[keep:]:
        aside = path.with_name(f".{path.name}.retired.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            os.rename(path, aside)
    unseen = [*folder.glob(".step_*.tmp")]
    if unseen:
        _tidying.append(threading.Thread(target=_remove_all, args=(unseen,), name="retired checkpoints"))
        _tidying[-1].start()


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
