"""One zip file that is the same for the same content, and is taken apart only if it is whole and harmless.

Entries are sorted, dated 1980 and checked by SHA256SUMS. What is read may come from anybody: names that lead out of
the folder, links, encryption, and more than fits the limits are refused before a byte is written.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kdscale import atomic
from kdscale.errors import ConfigError

__all__ = ["SUMS", "pack", "read_archive", "sums_of", "unpack"]

SUMS = "SHA256SUMS"
MOST_FILES = 50_000
MOST_BYTES = 2 << 30
"""Of all files together, unpacked."""

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def pack(files: Mapping[str, bytes]) -> bytes:
    """The bytes of a zip file that holds `files` by name, and their SHA256SUMS."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in sorted({**files, SUMS: sums_of(files).encode()}.items()):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
    return content.getvalue()


def sums_of(files: Mapping[str, bytes]) -> str:
    """As `sha256sum -c` reads it."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))


def unpack(path: Path, folder: Path) -> None:
    """Take a file that `pack` made apart into a folder, which appears whole or not at all.

    Raises:
        ConfigError: it is no such file, damaged, too large, or would write elsewhere.
    """
    files = read_archive(path)
    with atomic.aside(folder) as side:
        for name, data in files.items():
            target = side / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of what `pack` made, by name, each as its sum says; without SHA256SUMS itself. Raises: ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{path}: is no zip file, or was cut off: fetch it again")
    try:
        with zipfile.ZipFile(path) as archive:
            files = _read(path, archive)
    except _DAMAGED as error:
        raise ConfigError(f"{path}: is damaged ({error}): fetch it again") from error
    _check_sums(path, files)
    return files


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MOST_FILES:
        raise ConfigError(f"{path}: {len(entries)} files, more than the {MOST_FILES} of any bundle")
    files: dict[str, bytes] = {}
    left = MOST_BYTES
    for entry in entries:
        _demand_harmless(path, entry)
        if entry.filename in files:
            raise ConfigError(f"{path}: {entry.filename} is in it twice")
        with archive.open(entry) as stream:  # the size that the entry claims is not believed
            files[entry.filename] = data = stream.read(left + 1)
        left -= len(data)
        if left < 0:
            raise ConfigError(f"{path}: unpacks to more than {MOST_BYTES >> 30} GiB, which no bundle does")
    return files


def _demand_harmless(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or ":" in name or ".." in parts or not parts:
        raise ConfigError(f"{path}: {name!r} leads out of the folder that it is unpacked to: not a bundle of kdscale's")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise ConfigError(f"{path}: {name} is a link or a device: not a bundle of kdscale's")
    if entry.flag_bits & 1:
        raise ConfigError(f"{path}: {name} is encrypted: not a bundle of kdscale's")


def _check_sums(path: Path, files: dict[str, bytes]) -> None:
    listed = files.pop(SUMS, None)
    if listed is None:
        raise ConfigError(f"{path}: has no {SUMS}: not a bundle of kdscale's (report.py SWEEP --bundle makes one)")
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in listed.decode().splitlines())}
    for name in sorted(wanted.keys() | files.keys()):
        if name not in files:
            raise ConfigError(f"{path}: {name} is missing: fetch it again")
        if hashlib.sha256(files[name]).hexdigest() != wanted.get(name):
            raise ConfigError(f"{path}: {name} is damaged, or was changed: fetch it again")
