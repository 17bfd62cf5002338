"""Decoded records as a table in a file, written piece by piece: a large cache does not need its size in memory."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from kdscale import atomic
from kdscale.data.loader import TrainViews
from kdscale.errors import ConfigError, StageError
from kdscale.jobs.cache_places import CachePlace, cache_named
from kdscale.jobs.cache_records import Columns, columns_of, select, shapes_of
from kdscale.jobs.wording import size
from kdscale.pipeline.artifacts import Root

__all__ = ["export"]

Shapes = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
Pieces = Callable[[], Iterator[Columns]]


def export(  # noqa: PLR0913
    root: Root, name: str, console: Console, *, format_: str, out: Path, view: int | None, rows: str | None, force: bool
) -> int:
    """Write records of a cache to a file, whole or not at all.

    Args:
        root: where the cache is.
        name: of the cache.
        console: what was written is printed on it.
        format_: parquet or npz.
        out: the file.
        view: one view; None takes all.
        rows: which rows, as `--rows` says it; None takes all.
        force: replace a file that is there.

    Raises:
        ConfigError: no such cache, view or row; the file is there already, or cannot be written there.
        CacheError: records are damaged, or not there yet.
        OSError: the disk is full; nothing is left behind.
    """
    place = cache_named(name, root)
    if out.is_dir() or (out.exists() and not force):
        raise ConfigError(f"--out {out}: {'is a folder' if out.is_dir() else 'is there already: --force replaces it'}")
    write = _parquet() if format_ == "parquet" else _write_npz
    folder, layout = place.opened, place.layout
    chosen = select(folder, view, rows)
    data, missing = _data(place, root)
    shapes = shapes_of(layout, labelled=data is not None)
    try:
        with atomic.aside(out) as side:
            write(side, lambda: columns_of(folder, layout, chosen, data), shapes, chosen.records, _about(place))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
    if missing:
        console.print(Text(f"without labels: {missing}", style="yellow"), soft_wrap=True)
    console.print(
        Text(f"{out}: {chosen.records:,} records, {size(out.stat().st_size)}; columns {', '.join(shapes)}"),
        soft_wrap=True,
    )
    return 0


def _data(place: CachePlace, root: Root) -> tuple[TrainViews | None, str]:
    """The data that the rows are of; None, with the reason, where it is not here."""
    from kdscale.jobs.cache_teacher import data_of

    try:
        return TrainViews(*data_of(place, root)), ""
    except StageError as error:
        return None, str(error)


def _about(place: CachePlace) -> str:
    """What the numbers are of, for whoever reads the file later."""
    return json.dumps({"schema": 1, "cache": place.opened.manifest.digest, "identity": place.opened.manifest.identity})


def _write_npz(side: Path, pieces: Pieces, shapes: Shapes, records: int, about: str) -> None:
    """One array after the other, for each of which the records are read again."""
    with zipfile.ZipFile(side, "w", zipfile.ZIP_STORED) as archive:
        for name, (dtype, shape) in shapes.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": (records, *shape)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces():
                    file.write(np.ascontiguousarray(piece[name], dtype).tobytes())
        with archive.open("about.npy", "w") as file:
            np.lib.format.write_array(file, np.array(about), allow_pickle=False)


def _parquet() -> Callable[[Path, Pieces, Shapes, int, str], None]:
    """What writes parquet. Raises: ConfigError where pyarrow is not installed."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"--format parquet needs pyarrow ({error}): `pip install pyarrow`, or `pip install mlflow`, which "
            "brings it; --format npz needs nothing"
        ) from error

    def write(side: Path, pieces: Pieces, shapes: Shapes, records: int, about: str) -> None:
        del records
        kinds = {name: arrow.from_numpy_dtype(dtype) for name, (dtype, _) in shapes.items()}
        widths = {name: math.prod(shape) if shape else 0 for name, (_, shape) in shapes.items()}
        fields = [(name, arrow.list_(kind, widths[name]) if widths[name] else kind) for name, kind in kinds.items()]
        schema = arrow.schema(fields, metadata={"kdscale": about})
        with parquet.ParquetWriter(side, schema, use_dictionary=False) as file:
            for piece in pieces():
                flat = {name: arrow.array(piece[name].reshape(-1)) for name in shapes}
                columns = [
                    arrow.FixedSizeListArray.from_arrays(array, widths[name]) if widths[name] else array
                    for name, array in flat.items()
                ]
                file.write_batch(arrow.record_batch(columns, schema=schema))

    return write
