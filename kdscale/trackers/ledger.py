"""What has been shipped, beside what it was shipped from: `tracking.json` of a stage or a sweep.

The ledger only saves work: all of it can be read back from the server, and is whenever a shipper starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kdscale.atomic import read_json, write_json

__all__ = ["Entry", "Ledger"]


@dataclass
class Entry:
    """One run on one destination."""

    run_id: str
    owner: str = ""
    """Folder name of the sweep whose run it hangs below; other sweeps leave its note alone."""
    steps: dict[str, int] = field(default_factory=dict)
    """High-water mark: the newest step shipped, of each metric of the spool."""
    figures: dict[str, float] = field(default_factory=dict)
    """Final figures as last shipped."""
    described: str = ""
    """Digest of tags and status as last shipped."""
    noted: str = ""
    """Digest of the note as last shipped."""
    offset: int = 0
    """Bytes of the spool that have been read."""
    mark: int = 0
    """Checksum of what lies just before `offset`: another one means that the spool was cut and grew again."""
    uploads: dict[str, str] = field(default_factory=dict)
    """Signature of each artifact as last uploaded."""
    deleted: bool = False
    """Somebody deleted the run on the server: it stays so."""


class Ledger:
    """Entries by run key, of one destination; use it with the destination's lock held, and `save` before letting go."""

    def __init__(self, path: Path, destination: str) -> None:
        self._path, self._destination = path, destination
        self._stamp = _stamp(path)
        self._content = _read(path)
        mine: Mapping[str, Any] = self._content["destinations"].get(destination, {})
        known = {f.name for f in fields(Entry)}
        self._entries = {key: Entry(**{k: v for k, v in raw.items() if k in known}) for key, raw in mine.items()}
        self._saved = self._document()

    @property
    def unchanged(self) -> bool:
        """Whether the file is still as this object read or wrote it."""
        return self._stamp == _stamp(self._path)

    def get(self, key: str) -> Entry | None:
        """What is recorded of a run."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Record a run."""
        self._entries[key] = entry

    def drop(self, key: str) -> None:
        """Forget a run that the server does not have."""
        self._entries.pop(key, None)

    def save(self) -> None:
        """Write what has changed, if anything has."""
        now = self._document()
        if now != self._saved:
            self._content["destinations"][self._destination] = now
            write_json(self._path, self._content)
            self._saved, self._stamp = now, _stamp(self._path)

    def _document(self) -> dict[str, Any]:
        return {key: asdict(entry) for key, entry in self._entries.items()}


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError:  # damaged: the server knows everything that is in it
        content = None
    return content if content and content.get("schema") == 1 else {"schema": 1, "destinations": {}}
