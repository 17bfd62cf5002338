"""Published files as they lie on disk: packed as published, packed anew, or unpacked.

Archives are read in place and never unpacked, so a name inside one cannot lead out of a folder.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdscale.data.checked import Checked
from kdscale.errors import DataError

__all__ = ["Package", "Publication", "check", "contents", "md5_of", "path_in"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """One published file, and the pieces of data that it unpacks to."""

    file: str
    md5: str
    """Of the file as published."""
    pieces: Mapping[str, str]
    """MD5 of each piece's own bytes, by name. Where an archive is unpacked and these differ, the folder is a data set
    of its own (with a fingerprint of its own), not an error."""
    folder: str = ""
    """What an archive unpacks to; a compressed single file unpacks to its one piece."""


@dataclass(frozen=True)
class Publication:
    """A data set as its authors, and distributions, publish it."""

    name: str
    packages: tuple[Package, ...]
    urls: tuple[str, ...]
    """Mirrors: addresses of folders that hold the files; none when there is nothing to download."""
    system: tuple[Path, ...] = ()
    """Where a distribution's package puts the files."""
    aliases: tuple[str, ...] = ()
    """Folders below a data root where other tools put the files."""
    hint: str = ""
    """What else brings it, e.g. a distribution's package."""


def path_in(folder: Path, package: Package) -> Path | None:
    """Return the package's file in `folder`, or what it unpacks to; None when neither is there."""
    if os.path.isfile(folder / package.file):
        return folder / package.file
    if not package.folder:
        piece = folder / next(iter(package.pieces))
        return piece if os.path.isfile(piece) else None
    unpacked = (folder / package.folder, folder)
    return next((path for path in unpacked if all(os.path.isfile(path / piece) for piece in package.pieces)), None)


def contents(path: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    """Yield (piece, its bytes) of a packed or unpacked package.

    Raises:
        DataError: a file is damaged or lacks a piece.
    """
    seen = set()
    try:
        for piece, content in _unpack(path, package):
            seen.add(piece)
            yield piece, content
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: damaged or cut short ({error}); remove it and fetch it again") from error
    if lost := set(package.pieces) - seen:
        raise DataError(f"{path}: lacks {', '.join(sorted(lost))}; remove it and fetch it again")


def check(name: str, path: Path, package: Package) -> Checked:
    """Verify a package against its published checksums, packed or unpacked.

    Raises:
        DataError: a packed file, or the only piece of one, does not hold the published bytes.
    """
    as_published = path.is_file() and md5_of(path) == package.md5
    pieces = {
        piece: hashlib.md5(content, usedforsecurity=False).hexdigest() for piece, content in contents(path, package)
    }
    wrong = [piece for piece, md5 in package.pieces.items() if pieces[piece] != md5]
    if wrong and not as_published and path.is_file():
        raise DataError(
            f"{path}: not the published {name}: MD5 {md5_of(path)}, published {package.md5} "
            f"({', '.join(wrong)} differs too); it may be cut short: remove it and fetch it again"
        )
    return Checked(pieces, published=as_published or not wrong)


def md5_of(path: Path) -> str:
    """Hash a file (MD5, since that is what is published; it guards against damage, not against malice)."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(path: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        yield from ((piece, (path / piece).read_bytes()) for piece in package.pieces)
    elif package.folder:
        yield from _members(path, package)
    else:
        piece = next(iter(package.pieces))
        yield piece, gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _members(path: Path, package: Package) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            piece = PurePosixPath(member.name).name
            stream = archive.extractfile(member) if piece in package.pieces else None
            if stream is not None:
                yield piece, stream.read()
