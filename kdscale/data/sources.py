"""Published data sets on this machine: found, verified, read.

A set is looked for in the data root, then in the system's folder, then downloaded. A file is trusted when
its checksum, or the checksum of what it unpacks to, is the published one: distributions pack the same
bytes anew, and people keep them unpacked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdscale.data.checked import Checked, cache_folder, recall, remember
from kdscale.data.download import fetch
from kdscale.data.packages import Package, Publication, check, contents, path_in
from kdscale.errors import DataError

__all__ = ["ArraySource", "PublishedFiles", "data_root", "read_idx"]


@dataclass(frozen=True)
class ArraySource:
    """Samples in memory: satisfies `api.Source`."""

    images: NDArray[np.uint8]
    """(N, H, W, K)."""
    labels: NDArray[np.int64]
    """(N,)."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        return self.images[row], int(self.labels[row])


class PublishedFiles:
    """The files of one publication on this machine; nothing is touched before it is asked for."""

    def __init__(self, publication: Publication, root: Path | None, *, download: bool = True) -> None:
        self.publication = publication
        self._root = root
        self._download = download
        self._found: dict[str, Path] = {}

    def locate(self) -> dict[str, Path]:
        """Find the path of every package, downloading what is missing where that is allowed.

        Raises:
            DataError: it is in none of the three places; the text names them.
        """
        if not self._found:
            self._found = self._on_disk() or self._downloaded()
        return self._found

    def roots(self) -> list[Path]:
        """List the folders that count as data root, in the order they are searched."""
        names = ("", self.publication.name, *self.publication.aliases)
        tops = [top for top in (self._root, data_root()) if top]
        return [*(top / name for top in tops for name in names), self.target()]

    def target(self) -> Path:
        """Return the folder that downloads go to."""
        return (data_root() or cache_folder() / "data") / self.publication.name

    def fingerprint(self) -> str:
        """Digest the published checksums, verified where the files are here: equal however they are packed.

        With `download=False`, a set that is not here yet answers by what a download would bring, so that a
        sweep can be planned before its data is fetched.

        Raises:
            DataError: damaged; or missing, with downloads on and failing, or with nothing to download.
        """
        publication = self.publication
        later = not self._download and bool(publication.urls) and not self.is_here()
        if later or self.is_published():
            lines = [f"{package.file} {package.md5}\n" for package in publication.packages]
        else:
            lines = [f"{piece} {md5}\n" for piece, md5 in sorted(self.checksums().items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def is_here(self) -> bool:
        """Say whether the files lie on this machine; touches no network."""
        self._found = self._found or self._on_disk()
        return bool(self._found)

    def checksums(self, *, again: bool = False) -> dict[str, str]:
        """Return the verified MD5 of every piece; `again` hashes the bytes even if that was done before."""
        checked = [self._checked(package, again=again) for package in self.publication.packages]
        return {piece: md5 for entry in checked for piece, md5 in entry.pieces.items()}

    def is_published(self) -> bool:
        """Say whether published checksums vouch for every byte; else it is an unpacked archive with other contents."""
        return all(self._checked(package).published for package in self.publication.packages)

    def read(self, *pieces: str) -> list[bytes]:
        """Return the bytes of pieces, in the order asked for.

        Raises:
            DataError: missing, damaged, or changed since it was verified.
        """
        expected = self.checksums()
        found: dict[str, bytes] = {}
        for package in self.publication.packages:
            if set(pieces) & set(package.pieces):
                path = self.locate()[package.file]
                found |= {name: _same(path, c, expected[name]) for name, c in contents(path, package) if name in pieces}
        return [found[piece] for piece in pieces]

    def _checked(self, package: Package, *, again: bool = False) -> Checked:
        path = self.locate()[package.file]
        checked = None if again else recall(path, package.md5)
        if checked is None:
            checked = check(self.publication.name, path, package)
            remember(path, package.md5, checked)
        return checked

    def _on_disk(self) -> dict[str, Path]:
        for folder in (*self.roots(), *self.publication.system):
            paths = {package.file: path_in(folder, package) for package in self.publication.packages}
            found = {file: path for file, path in paths.items() if path}
            if len(found) == len(paths):
                return found
        return {}

    def _downloaded(self) -> dict[str, Path]:
        publication = self.publication
        if not publication.urls:
            raise DataError(self._not_found("nobody publishes it as a download"))
        if not self._download:
            raise DataError(self._not_found(f"{publication.urls[0]} was not asked: downloads are off here"))
        try:
            return {p.file: fetch(publication.urls, p.file, p.md5, self.target()) for p in publication.packages}
        except (OSError, DataError) as error:
            raise DataError(self._not_found(str(error))) from error

    def _not_found(self, about_download: str) -> str:
        publication = self.publication
        user = f"data.root {self._root}" if self._root else "data.root not set"
        environment = f"KDSCALE_DATA {data_root()}" if data_root() else "KDSCALE_DATA not set"
        system = ", ".join(map(str, publication.system))
        mend = [f"put the files in {self.target()}", "set data.root", publication.hint]
        return "\n".join(
            [
                f"{publication.name} was not found ({', '.join(p.file for p in publication.packages)}). Looked in",
                f"  data root      {user}, {environment}, {self.target()}: {self._lacking(self.roots())}",
                f"  system folder  {f'{system}: {self._lacking(publication.system)}' if system else 'none has it'}",
                f"  download       {about_download}",
                f"  -> {', or '.join(filter(None, mend))}",
            ]
        )

    def _lacking(self, folders: Sequence[Path]) -> str:
        """Say what the fullest of `folders` lacks, so that one forgotten file is seen at once."""
        lacks = {f: [p.file for p in self.publication.packages if not path_in(f, p)] for f in folders}
        fullest = min(lacks, key=lambda folder: len(lacks[folder]))
        if len(lacks[fullest]) == len(self.publication.packages):
            return "none of the files"
        return f"{fullest} lacks {', '.join(lacks[fullest])}"


def data_root() -> Path | None:
    """Return the folder that KDSCALE_DATA names: one folder a data set lies in it."""
    text = os.environ.get("KDSCALE_DATA")
    return Path(text).expanduser() if text else None


def read_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "the IDX file format").

    Raises:
        DataError: it is none, or its length is not what its header says.
    """
    dims = content[3] if len(content) >= 4 and content[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * dims
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4")) if len(content) >= start else ()
    if not shape or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{name}: no IDX file of unsigned bytes, or cut short ({len(content)} bytes); fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _same(path: Path, content: bytes, md5: str) -> bytes:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{path}: changed since it was verified; start again")
    return content
