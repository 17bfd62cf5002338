"""One stage on disk: its definition, how far it is, its files, and who may write them.

    runs/stages/<name>-<digest12>/   stage.yaml  state.json  claim.json  metrics.jsonl  checkpoints/  snapshots/  logs/

state.json is written by the stage's claimant alone, or by anybody's launcher while nobody holds the claim; both
under one lock.
"""

from __future__ import annotations

import getpass
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kdscale import atomic
from kdscale.errors import ConfigError, StageError, StageHeld
from kdscale.pipeline.claims import Claim, describe, holder_of, lock_of, locked
from kdscale.pipeline.new_stage import as_yaml, fresh_state

__all__ = ["AT_REST", "UNDER_WAY", "StageFolder"]

State = dict[str, Any]

UNDER_WAY = frozenset({"running", "evaluating"})
"""States that only a live claimant can be in."""
AT_REST = frozenset({"interrupted", "paused", "done", "failed", "blocked", "cancelled"})
"""States that end an attempt."""

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C where libyaml is there, six times faster."""
_SELECTOR = re.compile(r"last|best|epoch:\d+|acc:[0-9.]+")


class StageFolder:
    """One stage on disk.

    Args:
        path: runs/stages/<name>-<digest12>.
        writable: False for a stage of a read-only root.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self.writable = writable
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.logs = path / "logs"
        self.snapshots = path / "snapshots"
        self._claim_file = path / "claim.json"
        self._claim: Claim | None = None

    def __repr__(self) -> str:
        return f"StageFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Name under which the stage was first made."""
        return self.path.name.rpartition("-")[0]

    @property
    def digest12(self) -> str:
        """First 12 digits of the digest: what the folder is found by."""
        return self.path.name.rpartition("-")[2]

    @property
    def digest(self) -> str:
        """The whole digest, as its definition or state records it; 12 digits before either is written."""
        known = str(self.state()["digest"])
        return known if len(known) > 12 else str(self._defined().get("digest", known))

    # ------------------------------------------------------------------ definition and state

    def definition(self) -> dict[str, Any]:
        """What the stage is, from stage.yaml. Raises: StageError."""
        defined = self._defined()
        if not defined:
            raise StageError(f"{self.path} has no stage.yaml: give the sweep's command again, which writes it")
        return defined

    def define(self, definition: Mapping[str, Any]) -> None:
        """Write stage.yaml, unless it says just that."""
        self._demand_writable()
        path, text = self.path / "stage.yaml", as_yaml(definition)
        if not path.exists() or path.read_text() != text:
            atomic.write_text(path, text)

    def state(self) -> State:
        """How far the stage is, from state.json; waiting before there is one. Raises: StageError."""
        try:
            known = atomic.read_json(self.path / "state.json") or {}
        except ValueError as error:
            raise StageError(
                f"{self.path / 'state.json'} is damaged ({error}): `python launch/runs.py rm {self.path.name}` "
                "takes the stage out, the next launch makes it anew"
            ) from None
        return {**fresh_state(self.name, self.digest12), **known}

    def write_state(self, **changes: Any) -> None:
        """Change entries of state.json.

        Raises:
            StageError: this process held the claim and lost it; or it never held it and a live process does.
        """
        with self._locked():
            self._demand_right_to_write()
            self._write(changes)

    def note_attempt(self, **changes: Any) -> None:
        """Change entries of the newest attempt, e.g. `resumed_from`; nothing before the first. Raises: StageError."""
        with self._locked():
            self._demand_right_to_write()
            *earlier, newest = self.state()["attempts"] or [{"attempt": 0}]
            if newest["attempt"]:
                self._write({"attempts": [*earlier, {**newest, **changes}]})

    def reconcile(self) -> str | None:
        """Turn a stage that runs by its state but whose process is dead into `interrupted`; idempotent.

        Returns:
            What was found, or None when state and claim agree.
        """
        with self._locked():
            state = self.state()
            if holder_of(self._claim_file) or state["state"] not in UNDER_WAY:
                return None
            lost = self.last_claim()
            where = f"process {lost['pid']} on {lost['host']}" if lost else "its process"
            reason = f"{where} ended without a word (killed, out of memory, or the machine went down)"
            self._write({"attempts": _closed(state["attempts"], state, lost), "state": "interrupted", "reason": reason})
            self._claim_file.unlink(missing_ok=True)
            return reason

    # ------------------------------------------------------------------ claim

    def claim(self, attempt: Mapping[str, Any]) -> Claim:
        """Become the one process that may write this stage, and note a new attempt.

        Args:
            attempt: What to record of it (world, engine, device ...).

        Raises:
            StageError: a live process holds the stage, it is done, or it lies in a read-only root.
        """
        with self._locked():
            state = self.state()
            if state["state"] == "done":
                raise StageError(f"{self.path.name} is done already")
            number = len(state["attempts"]) + 1
            claim = Claim.take(self._claim_file, attempt=number)
            noted = {"attempt": number, "started": time.time(), **attempt, "ended": None, "outcome": None}
            try:
                self._write({"attempts": [*_closed(state["attempts"], state, claim.previous), noted]})
            except BaseException:
                self._claim_file.unlink(missing_ok=True)
                raise
        claim.closing = self._close_attempt
        self._claim = claim.begin()
        return claim

    def claimant(self) -> dict[str, Any] | None:
        """The live process that holds this stage; None when nobody does."""
        return holder_of(self._claim_file)

    def last_claim(self) -> dict[str, Any] | None:
        """The claim on disk, dead or alive."""
        return self._noted("claim.json")

    # ------------------------------------------------------------------ marks

    def snapshot(self, selector: str) -> Path:
        """Where the weights under a selector (last, best, epoch:3, acc:0.9; last#ft: a term's) lie, or would lie.

        Raises:
            ConfigError: no such kind of selector.
        """
        when, _, term = selector.partition("#")
        if not _SELECTOR.fullmatch(when):
            raise ConfigError(f"no snapshot is called {selector!r}: last, best, epoch:N or acc:X")
        return self.snapshots / when.replace(":", "_") / f"{f'terms/{term}' if term else 'student'}.safetensors"

    def request_cancel(self, reason: str) -> None:
        """Ask whoever runs or would run this stage not to; polled at step boundaries."""
        self._mark("cancel", reason)

    def cancel_request(self) -> dict[str, Any] | None:
        """The standing wish that this stage be not run: when, by, reason."""
        return self._noted("cancel.json")

    def clear_cancel(self) -> None:
        """Forget the wish, because a new command wants the stage."""
        self._demand_writable()
        (self.path / "cancel.json").unlink(missing_ok=True)

    def pin(self, reason: str) -> None:
        """Keep the stage, and what it was made from, from being tidied away."""
        self._mark("pin", reason)

    def unpin(self) -> None:
        """Let the stage be tidied away again."""
        self._demand_writable()
        (self.path / "pin.json").unlink(missing_ok=True)

    def pinned(self) -> dict[str, Any] | None:
        """When, by whom and why the stage was pinned; None when it is not."""
        return self._noted("pin.json")

    def take_out(self, reason: str) -> Path:
        """Move the stage out of sight of every plan, with a reason; returns where it lies until gc.

        Raises:
            StageError: a live process holds it.
        """
        with self._locked():
            self._demand_right_to_write()
            self._mark("removed", reason)
            target = self.path.parent / ".removed" / f"{self.path.name}.{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            self.path.rename(target)
            return target

    def drop(self, part: Path) -> None:
        """Delete a part of a stage that nobody runs; gone for every reader at once. Raises: StageError."""
        aside = self.path / f".dropped.{part.name}"
        with self._locked():
            self._demand_right_to_write()
            if part.exists():
                _remove(aside)
                part.rename(aside)
        _remove(aside)

    # ------------------------------------------------------------------ inner parts

    def _defined(self) -> dict[str, Any]:
        path = self.path / "stage.yaml"
        return (yaml.load(path.read_text(), Loader=_SafeLoader) or {}) if path.exists() else {}  # noqa: S506

    def _noted(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = atomic.read_json(self.path / name)
        return found

    def _mark(self, kind: str, reason: str) -> None:
        self._demand_writable()
        by = f"{getpass.getuser()}@{socket.gethostname()}"
        atomic.write_json(self.path / f"{kind}.json", {"when": time.time(), "by": by, "reason": reason})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._demand_writable()
        lock = lock_of(self._claim_file)
        gone = StageError(f"{self.path} was taken out meanwhile: give the sweep's command again, which makes it anew")
        if not self.path.is_dir():
            raise gone
        with locked(lock):
            if not lock.exists():
                raise gone
            yield

    def _demand_writable(self) -> None:
        if not self.writable:
            raise StageError(f"{self.path} lies in a read-only root (KDSCALE_REUSE): it may be used, not changed")

    def _demand_right_to_write(self) -> None:
        if self._claim is not None:
            self._claim.check()
        elif holder := holder_of(self._claim_file):
            raise StageHeld(f"{self.path.name} is being run by {describe(holder)}: only that process may change it")

    def _write(self, changes: Mapping[str, Any]) -> None:
        document = {**self.state(), **changes, "updated": time.time()}
        attempts = document["attempts"]
        if changes.get("state") in AT_REST and attempts and attempts[-1].get("outcome") is None:
            document["attempts"] = [*attempts[:-1], attempts[-1] | {"outcome": changes["state"]}]
        atomic.write_json(self.path / "state.json", document)

    def _close_attempt(self) -> None:
        *earlier, own = self.state()["attempts"]
        self._write({"attempts": [*earlier, {**own, "ended": time.time()}]})
        self._claim = None


def _closed(attempts: Sequence[State], state: State, lost: Mapping[str, Any] | None) -> list[State]:
    """Attempts that nobody could end themselves, ended at their last sign of life."""
    seen = max(state["updated"], lost["heartbeat"] if lost else 0.0)
    return [a if a.get("ended") else {**a, "ended": seen, "outcome": a.get("outcome") or "lost"} for a in attempts]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
