"""Where a root's stages lie, by digest: one listing of the folder answers for thousands of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kdscale.errors import StageError

__all__ = ["StageNames", "visible_folders"]

_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_FOLDER = re.compile(r".+-[0-9a-f]{12}")


class StageNames:
    """Folder names below runs/stages by the digits that end them.

    A name once seen is believed as long as its folder is there; what is not known is looked for again each time, as
    another process may have made it meanwhile. Whoever asks for many at once lists the folder once and asks `seen`.

    Args:
        folder: runs/stages; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}

    def find(self, digest: str) -> Path | None:
        """The folder of a digest; None when there is none now. Raises: StageError."""
        path = self.seen(digest)
        if path is not None and path.is_dir():
            return path
        self.list()
        return self.seen(digest)

    def seen(self, digest: str) -> Path | None:
        """The same by the last listing. Raises: StageError."""
        if not _DIGEST.fullmatch(digest):
            raise StageError(f"{digest!r} is no digest: 12 hexadecimal digits at least")
        name = self._names.get(digest[:12])
        return self._folder / name if name is not None else None

    def add(self, path: Path) -> None:
        """Know a folder that was just made."""
        self._names[path.name[-12:]] = path.name

    def list(self) -> list[Path]:
        """Look at the whole folder again; returns all stages in it."""
        found = [path for path in visible_folders(self._folder) if _FOLDER.fullmatch(path.name)]
        self._names = {path.name[-12:]: path.name for path in found}
        return found


def visible_folders(parent: Path) -> Iterator[Path]:
    """Visible folders in a folder that may not be there."""
    try:
        with os.scandir(parent) as entries:
            yield from [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")]
    except FileNotFoundError:
        return
