"""Who runs a stage: a claim that a dead process cannot keep and that two live ones cannot share.

A claim is a file that names one process so exactly that another can tell whether it still lives: on the same
machine by boot, process id and start time (a zombie is dead, a reused process id is somebody else), elsewhere by
its heartbeat. It is created by a hard link, which only one process can make, and taken from a dead holder under a
lock that a killed process leaves behind unlocked.

Nothing here stops a process that lost its claim (suspended, cut off): it finds out at its next commit, by `check`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.errors import StageError, StageHeld

__all__ = ["BEAT_S", "SILENT_S", "STALE_S", "Claim", "alive", "describe", "holder_of", "locked", "start_time", "this"]

log = logging.getLogger(__name__)

Holder = dict[str, Any]

STALE_S = 120.0
"""A claim held on another machine is dead when its heartbeat is older."""
BEAT_S = 20.0
"""How often a live claim writes its heartbeat."""
SILENT_S = 1800.0
"""The heartbeat stops when the holder has shown no progress for so long, like a collective that waits in vain."""
LOCK_S = 30.0
_ENTRIES = {"host", "boot", "namespace", "pid", "started", "job", "restart", "since", "heartbeat"}
PROC = Path("/proc")


class Claim:
    """The right to write one stage, from `take` until `release` or until another process takes it over.

    A thread of its own writes the heartbeat, so that a long evaluation keeps its claim; but it goes on only as
    long as the loop itself calls `heartbeat` now and then: a loop that hangs falls silent after `SILENT_S`, and
    another machine takes over `STALE_S` later.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self.holder = holder
        self.previous: Holder | None = None
        """The dead holder from whom this claim was taken."""
        self.closing: Callable[[], None] = lambda: None
        """What is written last, under the lock, when the claim is released."""
        self._lock = lock_of(path)
        self._pulse = time.monotonic()
        self._silent_s = SILENT_S
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {path.parent.name}", daemon=True)

    @classmethod
    def take(cls, path: Path, **about: Any) -> Claim:
        """Claim `path` for this process; the caller holds `locked(lock_of(path))`.

        Args:
            path: The claim file.
            about: Entries that tell this claim from the same process's others, e.g. `attempt=2`.

        Raises:
            StageHeld: a live process holds it.
        """
        now = time.time()
        claim = cls(path, {"schema": 1, **this(), **about, "since": now, "heartbeat": now})
        claim.previous = _holder(path)
        if claim.previous is not None:
            if alive(claim.previous):
                raise StageHeld(f"{path.parent.name} is held by {describe(claim.previous)}")
            log.warning("%s: taking over from %s, which is dead", path.parent.name, describe(claim.previous))
            path.unlink()
        if not _link(path, claim.holder):
            raise StageHeld(f"{path.parent.name}: another process took it at the same moment")
        return claim

    def begin(self, silent_s: float | None = None) -> Claim:
        """Start the heartbeat; it ends after `silent_s` (default `SILENT_S`) without a call of `heartbeat`."""
        self._silent_s = SILENT_S if silent_s is None else silent_s
        self._thread.start()
        return self

    def heartbeat(self) -> None:
        """Say that the holder makes progress; costs nothing, call it as often as you like."""
        self._pulse = time.monotonic()

    def is_mine(self) -> bool:
        """Whether this claim is still the one on disk."""
        return _same(_holder(self.path), self.holder)

    def check(self) -> None:
        """Raise when the claim is lost; to be asked right before every commit.

        Raises:
            StageError: another process has taken over, or somebody removed the claim.
        """
        holder = _holder(self.path)
        if not _same(holder, self.holder):
            by = f"{describe(holder)} has taken it over" if holder else "its claim was removed"
            raise StageError(f"this process no longer holds {self.path.parent.name}: {by}; it stops without writing")

    def release(self) -> None:
        """Give the claim back; does nothing where it is lost already, or released."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(LOCK_S)
        with locked(self._lock):
            if self.is_mine():
                try:
                    self.closing()
                except OSError as error:  # a full disk must not hide why the stage ends
                    log.warning("%s: its end is not noted: %s", self.path.parent.name, error)
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            silent = time.monotonic() - self._pulse
            if silent > self._silent_s:
                log.error("%s: no progress for %.0f min, no more heartbeat", self.path.parent.name, silent / 60)
                return
            try:
                if not self._write_beat():
                    return
            except (OSError, StageError) as error:  # a full disk ends a claim on other machines only, and is mended
                log.warning("%s: heartbeat not written: %s", self.path, error)

    def _write_beat(self) -> bool:
        with locked(self._lock):
            if not self.is_mine():
                return False
            atomic.write_json(self.path, {**self.holder, "heartbeat": time.time()})
            return True


# --------------------------------------------------------------------------- who lives


def holder_of(path: Path) -> Holder | None:
    """The live holder of a claim file; None when there is none or it is dead."""
    holder = _holder(path)
    return holder if holder is not None and alive(holder) else None


def alive(holder: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a claim still runs.

    A SLURM job that was requeued has outlived its own earlier run, wherever that was.
    """
    here = this()
    if holder["host"] == here["host"] and holder["boot"] != here["boot"]:
        return False
    if holder["host"] == here["host"] and holder["namespace"] == here["namespace"]:
        return bool(start_time(holder["pid"]) == holder["started"])
    if holder["job"] and holder["job"] == here["job"] and holder["restart"] < here["restart"]:
        return False
    return bool(time.time() - holder["heartbeat"] <= STALE_S)


def describe(holder: Mapping[str, Any]) -> str:
    """A holder in words: where it runs and since when."""
    job = f", SLURM job {holder['job']}" if holder["job"] else ""
    since = time.strftime("%d %b %H:%M", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']}{job}, since {since}"


def this() -> Holder:
    """What tells this process from every other that ever ran."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def start_time(pid: int) -> int | None:
    """When a process of this machine started, in the kernel's clock ticks; None when it is gone or a zombie."""
    if not PROC.is_dir():
        return _start_without_proc(pid)
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _start_without_proc(pid: int) -> int | None:
    """The same on systems without /proc, in milliseconds."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1000)
    except psutil.NoSuchProcess:
        return None


@cache
def _boot() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        import psutil

        return str(round(psutil.boot_time()))


@cache
def _namespace() -> str:
    """Containers of one machine may share its name, but not its process ids."""
    try:
        return os.readlink(PROC / "self/ns/pid")
    except OSError:
        return ""


# --------------------------------------------------------------------------- files


def lock_of(path: Path) -> Path:
    """The lock file beside a claim; it stays for ever, as a lock on a removed file protects nothing."""
    return path.with_suffix(".lock")


def locked(path: Path, timeout_s: float = LOCK_S) -> AbstractContextManager[None]:
    """Hold an exclusive lock for a moment; a process that is killed lets go of it.

    Raises:
        StageError: the file system has no locks, or somebody keeps this one.
    """
    return atomic.locked(path, timeout_s, StageError)


def _link(path: Path, holder: Holder) -> bool:
    side = path.with_name(f".{path.name}.{holder['host']}.{holder['pid']}")
    atomic.write_json(side, holder)
    try:
        os.link(side, path)
        atomic.sync_folder(path.parent)
        return True
    except FileExistsError:
        return False
    finally:
        side.unlink(missing_ok=True)


def _holder(path: Path) -> Holder | None:
    try:
        holder: Holder | None = atomic.read_json(path)
    except ValueError:
        holder = {}
    if holder is not None and not holder.keys() >= _ENTRIES:
        raise StageError(f"{path} is damaged; remove it if nothing runs this stage")
    return holder


def _same(found: Mapping[str, Any] | None, own: Mapping[str, Any]) -> bool:
    """Whether two claims are one: all but the heartbeat."""
    return found is not None and {**found, "heartbeat": 0} == {**own, "heartbeat": 0}
