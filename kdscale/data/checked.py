"""What is known of files that were checked once, so that planning need not hash them each time.

A note holds as long as the file's size and modification time do. Losing the notes costs a hash, no more.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdscale import atomic

__all__ = ["Checked", "cache_folder", "recall", "remember"]


@dataclass(frozen=True)
class Checked:
    """The outcome of checking one file, or one folder of an unpacked archive."""

    pieces: dict[str, str]
    """MD5 of each piece's own bytes, by name."""
    published: bool
    """Whether a published checksum vouches for all of them."""


def cache_folder() -> Path:
    """Return the user's cache folder of kdscale (below XDG_CACHE_HOME or ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "kdscale"


def recall(path: Path, expected: str) -> Checked | None:
    """Return what was found when `path` was checked against `expected`; None when it has changed since."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = atomic.read_json(_note(path)) or {}
        if note.get("stat") == _stat(path) and note.get("expected") == expected:
            return Checked({str(k): str(v) for k, v in note["pieces"].items()}, bool(note["published"]))
    return None


def remember(path: Path, expected: str, checked: Checked) -> None:
    """Note the outcome; where the cache folder cannot be written, it is simply checked again next time."""
    with suppress(OSError):
        note = {"path": str(path.resolve()), "stat": _stat(path), "expected": expected}
        atomic.write_json(_note(path), {**note, "pieces": checked.pieces, "published": checked.published})


def _note(path: Path) -> Path:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    return cache_folder() / "checked" / f"{key}.json"


def _stat(path: Path) -> list[list[int | str]]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
