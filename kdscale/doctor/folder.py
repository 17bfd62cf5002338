"""Whether the folder of runs can carry what kdscale does there: room, locks, renames, links, a common clock."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdscale.doctor.findings import Finding

__all__ = ["clock_skew_s", "examine_folder", "links_work", "locks_work", "rename_is_atomic"]

LOW_GB = 2.0
SKEW_S = 1.0
"""A file system's clock that is further off makes live stages look dead, and dead ones alive, to `status`."""
_RENAMES = 200
_CHILD_S = 30.0

_TRY_LOCK = """
import fcntl, sys
try: fcntl.flock(open(sys.argv[1], "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(7)
"""
_HELD = 7


def examine_folder(runs: Path) -> Iterator[Finding]:
    """Try everything out in a folder of its own below `runs` (or below its nearest parent), and clear it away."""
    place = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    where = str(runs.absolute()) if place == runs.absolute() else f"{runs.absolute()} (not made yet)"
    yield _room(place, where)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
            yield from _tried(Path(folder))
    except OSError as error:
        mend = "results cannot be written there: another --runs, or KDSCALE_RUNS"
        yield Finding("runs", "folder of runs", "broken", f"NOT WRITABLE ({error.strerror})", mend, needed=True)


def _room(place: Path, where: str) -> Finding:
    free_gb = shutil.disk_usage(place).free / 1e9
    inodes = os.statvfs(place).f_favail
    files = f", room for {inodes:,} files" if inodes else ""
    details = {"path": where, "free_gb": round(free_gb, 2), "free_inodes": inodes}
    text = f"{where} · {free_gb:,.0f} GB free{files} (a quota may allow less)"
    if free_gb >= LOW_GB:
        return Finding("runs", "room", "ok", text, details=details)
    mend = "little room: python launch/runs.py du, or another --runs"
    return Finding("runs", "room", "note", f"{text} LITTLE ROOM", mend, details=details)


def _tried(folder: Path) -> Iterator[Finding]:
    flock = "mount it with flock (Lustre: -o flock), or keep runs elsewhere"
    yield _verdict("locks", "locks work", locks_work, folder, f"two processes may write the same stage: {flock}")
    yield _verdict(
        "rename", "rename is atomic", rename_is_atomic, folder, "a reader may see half a file: keep runs elsewhere"
    )
    yield _verdict("links", "links work", links_work, folder, "claims and snapshots need hard and symbolic links")
    begun = time.perf_counter()
    _flushed(folder / "flushed")
    took_ms = 1e3 * (time.perf_counter() - begun)
    yield Finding("runs", "fsync", "ok", f"fsync {took_ms:.0f} ms", details={"fsync_ms": round(took_ms, 2)})
    yield _clock(folder)


def _verdict(name: str, text: str, trial: Callable[[Path], bool], folder: Path, mend: str) -> Finding:
    try:
        works, why = trial(folder), ""
    except (OSError, subprocess.SubprocessError) as error:
        works, why = False, f" ({error})"
    if works:
        return Finding("runs", name, "ok", text, needed=True)
    return Finding("runs", name, "broken", f"{name.upper()}: NO{why}", mend, needed=True)


def locks_work(folder: Path) -> bool:
    """Say whether a lock that this process holds keeps another out, and lets it in afterwards."""
    command = [sys.executable, "-c", _TRY_LOCK, str(folder / "lock")]
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held = subprocess.run(command, check=False, capture_output=True, timeout=_CHILD_S).returncode
    freed = subprocess.run(command, check=False, capture_output=True, timeout=_CHILD_S).returncode
    return held == _HELD and freed == 0


def rename_is_atomic(folder: Path) -> bool:
    """Say whether a reader always finds a whole file while another thread renames new ones over it."""
    target, contents = folder / "target", (b"a" * 4096, b"b" * 4096)
    target.write_bytes(contents[0])
    seen: list[bytes | None] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(target.read_bytes())
            except FileNotFoundError:
                seen.append(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(_RENAMES):
            side = folder / "side"
            side.write_bytes(contents[number % 2])
            os.replace(side, target)
    finally:
        done.set()
        reader.join()
    return set(seen) <= set(contents)


def links_work(folder: Path) -> bool:
    """Say whether a hard link refuses a name that is taken, and a symbolic link can be read."""
    file, hard, soft = folder / "file", folder / "hard", folder / "soft"
    file.write_text("content")
    os.link(file, hard)
    soft.symlink_to("file")
    try:
        os.link(file, hard)
    except FileExistsError:
        return soft.read_text() == hard.read_text() == "content"
    return False


def clock_skew_s(folder: Path) -> float:
    """Return how many seconds the file system's clock is ahead of this machine's; 0 within what can be told."""
    before = time.time()
    _flushed(folder / "clock")
    after = time.time()
    stamp = (folder / "clock").stat().st_mtime
    return min(0.0, stamp - before) if stamp <= after else stamp - after


def _clock(folder: Path) -> Finding:
    skew = clock_skew_s(folder)
    text, details = f"clock skew {abs(skew):.1f} s", {"clock_skew_s": round(skew, 3)}
    if abs(skew) <= SKEW_S:
        return Finding("runs", "clock", "ok", text, details=details)
    mend = f"the file system's clock is {'ahead' if skew > 0 else 'behind'}: synchronise clocks (chrony, ntpd)"
    return Finding("runs", "clock", "note", f"CLOCK SKEW {skew:+.1f} s", mend, details=details)


def _flushed(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
