"""What lies under a runs root: stages by digest, their states, claims and snapshots. No torch here.

    runs/stages/<name>-<digest12>/   a stage is found by its digest alone; the first name stays
    runs/sweeps/<name>-<digest8>/    plan.json names the stages of a sweep

Roots in $KDSCALE_REUSE are searched after the own one and never written.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdscale import atomic
from kdscale.errors import ConfigError, StageError

__all__ = ["Claim", "Root", "StageFolder", "SweepFolder"]

HEARTBEAT_STALE_S = 120.0
"""After so long without a heartbeat a claim from another host counts as dead."""


class Root:
    """A runs root, and further ones that are only read."""

    def __init__(self, path: Path, reuse: Sequence[Path] = ()) -> None:
        self.path = Path(path).absolute()
        self.reuse = [Path(other).absolute() for other in reuse]

    @classmethod
    def find(cls, flag: Path | None = None) -> Root:
        """The root that --runs, else $KDSCALE_RUNS, else ./runs names."""
        path = flag or Path(os.environ.get("KDSCALE_RUNS") or "runs")
        if Path(path).exists() and not Path(path).is_dir():
            raise ConfigError(f"--runs {path}: is a file; name a folder")
        reuse = [Path(part) for part in os.environ.get("KDSCALE_REUSE", "").split(os.pathsep) if part]
        return cls(Path(path), reuse)

    def stage(self, digest: str) -> StageFolder | None:
        """The folder of a stage, in the own root first; a finished one elsewhere counts, an unfinished does not."""
        for root in (self.path, *self.reuse):
            for path in sorted((root / "stages").glob(f"*-{digest[:12]}")):
                if not path.name.startswith("replaced-") and (path / "stage.yaml").exists():
                    folder = StageFolder(path, writable=root == self.path)
                    if folder.writable or folder.state().get("state") == "done":
                        return folder
        return None

    def create_stage(self, name: str, digest: str) -> StageFolder:
        """The stage's folder in the own root, made if need be under this name."""
        found = self.stage(digest)
        if found is not None and found.writable:
            return found
        path = self.path / "stages" / f"{name}-{digest[:12]}"
        (path / "logs").mkdir(parents=True, exist_ok=True)
        return StageFolder(path, writable=True)

    def stages(self) -> Iterator[StageFolder]:
        """All stages, the own root's first."""
        for root in (self.path, *self.reuse):
            for path in sorted((root / "stages").glob("*-*")):
                if (path / "stage.yaml").exists() and not path.name.startswith("replaced-"):
                    yield StageFolder(path, writable=root == self.path)

    def sweeps(self) -> list[SweepFolder]:
        """Own sweeps, the latest last."""
        paths = [path for path in (self.path / "sweeps").glob("*") if (path / "plan.json").exists()]
        return [SweepFolder(path) for path in sorted(paths, key=lambda p: (p / "plan.json").stat().st_mtime)]


@dataclass(frozen=True)
class SweepFolder:
    """One sweep's folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def plan(self) -> dict[str, Any]:
        """plan.json."""
        return dict(atomic.read_json(self.path / "plan.json") or {})


class StageFolder:
    """One stage's folder: its definition, state, snapshots, and who works on it."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self.writable = writable
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"

    @property
    def name(self) -> str:
        """The name under which it was first made."""
        return self.path.name.rpartition("-")[0]

    @property
    def digest(self) -> str:
        """Its first twelve digits."""
        return self.path.name.rpartition("-")[2]

    # ------------------------------------------------------------------ definition and state

    def definition(self) -> dict[str, Any]:
        """stage.yaml."""
        text = (self.path / "stage.yaml").read_text()
        return dict(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))

    def write_definition(self, definition: dict[str, Any]) -> None:
        """Write stage.yaml."""
        self._own()
        atomic.write_text(self.path / "stage.yaml", yaml.safe_dump(definition, sort_keys=False))

    def state(self) -> dict[str, Any]:
        """state.json; a stage without one is waiting."""
        return dict(atomic.read_json(self.path / "state.json") or {"state": "waiting"})

    def write_state(self, **changes: Any) -> None:
        """Merge `changes` into state.json."""
        self._own()
        with self._locked():
            state = {"schema": 1, "digest": self.digest, "name": self.name, **self.state(), **changes}
            atomic.write_json(self.path / "state.json", state | {"updated": time.time()})

    def note_attempt(self, **changes: Any) -> None:
        """Merge `changes` into the latest attempt."""
        attempts = list(self.state().get("attempts", []))
        if attempts:
            attempts[-1] = attempts[-1] | changes
            self.write_state(attempts=attempts)

    def snapshot(self, selector: str) -> Path:
        """The weights under a selector. Raises: StageError when it was never taken."""
        path = self.snapshots / selector.replace(":", "_") / "student.safetensors"
        if not path.exists():
            have = ", ".join(sorted(p.name.replace("_", ":") for p in self.snapshots.glob("*"))) or "none"
            raise StageError(f"{self.path.name} has no snapshot {selector} (it has: {have})")
        return path

    # ------------------------------------------------------------------ claims

    def claim(self, attempt: dict[str, Any]) -> Claim:
        """Take the stage for this process, exclusively.

        Raises:
            StageError: a live process holds it.
        """
        self._own()
        with self._locked():
            holder = self.claimant()
            if holder is not None:
                raise StageError(
                    f"{self.path.name} is being worked on by process {holder['pid']} on {holder['host']}; wait for it"
                )
            attempts = [*self.state().get("attempts", [])]
            number = len(attempts) + 1
            mine = _identity() | {"attempt": number, "heartbeat": time.time()}
            atomic.write_json(self.path / "claim.json", mine)
            state = {"schema": 1, "digest": self.digest, "name": self.name, **self.state()}
            attempts.append({"attempt": number, **attempt})
            atomic.write_json(self.path / "state.json", state | {"attempts": attempts, "updated": time.time()})
        return Claim(self, mine)

    def claimant(self) -> dict[str, Any] | None:
        """Who holds the stage, if they are alive."""
        holder = atomic.read_json(self.path / "claim.json")
        return holder if holder is not None and _alive(holder) else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _own(self) -> None:
        if not self.writable:
            raise StageError(f"{self.path} lies under a root that is only read ($KDSCALE_REUSE)")


class Claim:
    """One process's hold on a stage."""

    def __init__(self, folder: StageFolder, holder: dict[str, Any]) -> None:
        self._folder = folder
        self._holder = holder
        self._file = folder.path / "claim.json"

    def is_mine(self) -> bool:
        """Whether nobody has taken the stage over; asked before every commit."""
        found = atomic.read_json(self._file)
        return found is not None and all(found.get(k) == self._holder[k] for k in ("host", "pid", "start", "attempt"))

    def heartbeat(self) -> None:
        """Say that the loop advances: called by the loop itself, so a hung loop falls silent."""
        if self.is_mine():
            self._holder["heartbeat"] = time.time()
            atomic.write_json(self._file, self._holder)

    def release(self) -> None:
        """Give the stage back."""
        if self.is_mine():
            self._file.unlink(missing_ok=True)


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(), "boot": _boot_id(), "pid": pid, "start": _start_of(pid),
        "slurm": os.environ.get("SLURM_JOB_ID"),
    }  # fmt: skip


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return time.time() - holder["heartbeat"] < HEARTBEAT_STALE_S
    return holder["boot"] == _boot_id() and _start_of(holder["pid"]) == holder["start"]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started; empty when it is gone or a zombie. A pid alone may be somebody else's by now."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() or not _exists(pid) else "alive"
    return "" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
