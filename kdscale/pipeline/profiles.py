"""Profiles of a stage's steps in its folder: the wish for one, and what each rank measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale import atomic

__all__ = ["Profiles"]


@dataclass(frozen=True)
class Profiles:
    """What lies in `profile/` of a stage.

    Attributes:
        path: of the stage's folder.
    """

    path: Path

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return self.path / "profile"

    def ask(self, steps: int | None = None) -> None:
        """Ask for a profile of so many steps, and of a line of metrics; a running stage looks now and then."""
        self.folder.mkdir(exist_ok=True)
        atomic.write_json(self._request, {"when": time.time(), "steps": steps})

    def wish(self) -> dict[str, Any] | None:
        """The standing wish: when, and of how many steps."""
        found: dict[str, Any] | None = atomic.read_json(self._request)
        return found

    def forget_wish(self) -> None:
        """It is fulfilled, or nobody wants it any more."""
        self._request.unlink(missing_ok=True)

    def write(self, attempt: int, rank: int, document: dict[str, Any]) -> None:
        """Keep what a rank measured."""
        self.folder.mkdir(exist_ok=True)
        atomic.write_json(self.folder / f"attempt{attempt}-rank{rank}.json", document)

    def trace(self, attempt: int, rank: int) -> Path:
        """A rank's trace in Chrome's format: for chrome://tracing and ui.perfetto.dev."""
        return self.folder / f"attempt{attempt}-rank{rank}.trace.json"

    @property
    def _request(self) -> Path:
        return self.folder / "wish.json"
