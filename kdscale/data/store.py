"""Converted data on disk: every image a square of the same size, for one of the two loaders.

    manifest.json   what it was made from, sizes and hashes; written last
    train.labels.npy  test.labels.npy
    ffcv:   train.beton  test.beton
    torch:  train.images.npy (memory-mapped), or train.images.bin and train.offsets.npy for JPEG; test the same

A conversion happens once: of two processes that ask at the same time one converts and one waits; a folder
appears whole or not at all.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from filelock import FileLock
from numpy.typing import NDArray

from kdscale import atomic
from kdscale.api import Dataset, DatasetInfo
from kdscale.config.schema import DataConfig
from kdscale.data.convert import Converter, Record, stored_side
from kdscale.errors import DataError

__all__ = ["SPLITS", "Kind", "Progress", "SplitName", "Store", "write_store"]

Kind = Literal["ffcv", "torch"]
SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")
Progress = Callable[[int, int], None]
"""Told rows written and rows in all, now and then; what it raises ends the conversion, leaving nothing."""

SCHEMA = 1
PROGRESS_EVERY_ROWS = 500


class Store:
    """A finished conversion."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.kind: Kind = manifest["kind"]
        self.side: int = manifest["side"]
        self.encoding: Literal["raw", "jpeg"] = manifest["encoding"]
        self.content_hash: str = manifest["content_hash"]
        raw = manifest["info"]
        lists = {name: tuple(raw[name]) for name in ("mean", "std", "class_names")}
        self.info = DatasetInfo(**{**raw, **lists})
        self.readers: dict[tuple[str, int], Any] = {}
        """Open readers of its splits, shared by the loaders of a process (data/loader.py)."""

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a store. Raises: DataError when it is missing, of another version, or lacks bytes."""
        manifest = atomic.read_json(folder / "manifest.json")
        mend = "remove the folder and convert again"
        if manifest is None:
            raise DataError(f"{folder} holds no converted data: its conversion did not finish, or it was removed")
        if manifest.get("schema") != SCHEMA:
            raise DataError(f"{folder} has schema {manifest.get('schema')}, this kdscale reads {SCHEMA}: {mend}")
        for name, size in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                found = path.stat().st_size if path.is_file() else "no"
                raise DataError(f"{path} is damaged: {found} bytes, {size} were written: {mend}")
        return cls(folder, manifest)

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """Labels (N,) of a split, in row order."""
        labels: NDArray[np.int64] = np.load(self.path / f"{split}.labels.npy")
        return labels

    def rows(self, split: SplitName) -> int:
        """How many rows a split has."""
        return self.info.train_rows if split == "train" else self.info.test_rows


def write_store(
    dataset: Dataset, data: DataConfig, folder: Path, kind: Kind, progress: Progress | None = None
) -> Store:
    """Convert a data set, unless it is converted already.

    Args:
        dataset: found and checked.
        data: store, store_size, size.
        folder: becomes the store; its parent is made.
        kind: which loader it is for.
        progress: told how far it is.

    Raises:
        DataError: a sample cannot be read or is not what `info` says, or the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock")) as alone:
        if (folder / "manifest.json").is_file():
            return Store.open(folder)
        for debris in folder.parent.glob(f".{folder.name}.*.tmp") if alone else ():  # of conversions that were killed
            shutil.rmtree(debris, ignore_errors=True)
        with _explained(folder), atomic.aside(folder) as side:
            side.mkdir()
            _convert(dataset, data, side, kind, progress)
    return Store.open(folder)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Wait until nobody else converts; False where the file system has no locks (and the last to finish wins)."""
    lock = FileLock(path)
    try:
        lock.acquire()
    except NotImplementedError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _convert(dataset: Dataset, data: DataConfig, folder: Path, kind: Kind, progress: Progress | None) -> None:
    info = dataset.info
    converter = Converter(info, stored_side(info, data), data.store)
    atomic.demand_space(folder, converter.bytes_at_least(info.train_rows + info.test_rows))
    digest = xxhash.xxh3_128()
    done = _Told(progress, info.train_rows + info.test_rows)
    for split in SPLITS:
        rows = info.train_rows if split == "train" else info.test_rows
        source = dataset.open(split)
        if len(source) != rows:
            raise DataError(f"{split} set has {len(source)} samples, its description says {rows}")
        labels = np.empty(rows, np.int64)
        records = done.each(_hashed(converter.records(source, split), labels, digest))
        _write_images(folder, split, records, converter, kind, rows)
        np.save(folder / f"{split}.labels.npy", labels)
        digest.update(labels.astype("<i8").tobytes())
    _write_manifest(dataset, converter, folder, kind, digest.hexdigest())


def _write_images(
    folder: Path, split: str, records: Iterator[Record], converter: Converter, kind: Kind, rows: int
) -> None:
    side, channels, jpeg = converter.side, converter.info.planes, converter.encoding == "jpeg"
    if kind == "ffcv":
        from kdscale.data.ffcv_write import write_beton

        write_beton(folder / f"{split}.beton", records, rows, side, channels, jpeg=jpeg)
    elif jpeg:
        _write_blob(folder, split, records, rows)
    else:
        _write_array(folder / f"{split}.images.npy", records, (rows, side, side, channels))


def _write_array(path: Path, records: Iterator[Record], shape: tuple[int, ...]) -> None:
    """Stream images into a .npy file; plain writes, because a full disk kills whoever writes to a memory map."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for pixels, _ in records:
            file.write(np.ascontiguousarray(pixels).data)


def _write_blob(folder: Path, split: str, records: Iterator[Record], rows: int) -> None:
    """Write JPEG files one after the other, and where each begins."""
    offsets = np.zeros(rows + 1, np.int64)
    with (folder / f"{split}.images.bin").open("wb") as file:
        for row, (encoded, _) in enumerate(records):
            file.write(encoded.data)
            offsets[row + 1] = offsets[row] + len(encoded)
    np.save(folder / f"{split}.offsets.npy", offsets)


def _hashed(records: Iterator[Record], labels: NDArray[np.int64], digest: Any) -> Iterator[Record]:
    """Pass records on, noting their labels and hashing their bytes."""
    for row, (pixels, label) in enumerate(records):
        labels[row] = label
        digest.update(np.ascontiguousarray(pixels).data)
        yield pixels, label


def _write_manifest(dataset: Dataset, converter: Converter, folder: Path, kind: Kind, content_hash: str) -> None:
    manifest = {
        "schema": SCHEMA,
        "kind": kind,
        "encoding": converter.encoding,
        "side": converter.side,
        "fingerprint": dataset.fingerprint(),
        "content_hash": content_hash,
        "info": asdict(dataset.info),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    atomic.write_json(folder / "manifest.json", manifest)


class _Told:
    """Counts rows over both splits and tells somebody."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def each(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            yield record
            self._done += 1
            if self._progress is not None and (self._done % PROGRESS_EVERY_ROWS == 0 or self._done == self._total):
                self._progress(self._done, self._total)


# --------------------------------------------------------------------------- space

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file grew too large"}


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system says into a DataError that names the folder and the mend."""
    try:
        yield
    except OSError as error:
        problem = FULL.get(error.errno or 0, "the conversion cannot be written")
        raise DataError(
            f"{folder}: {problem} ({error}). Nothing was left behind. Free some space, or choose another place "
            "with --runs or $KDSCALE_RUNS; data.store: jpeg and a smaller data.store_size need less"
        ) from error
