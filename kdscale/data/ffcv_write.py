"""Writes .beton files, byte for byte those of FFCV's own writer with one worker.

FFCV's DatasetWriter spreads the work over processes: when one of them dies (a full disk, a damaged image)
it waits for ever, short writes pass unnoticed, and the order of pages depends on a race. This one writes
records one after the other, so errors surface and the same data gives the same file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdscale.data.ffcv_fence import open_ffcv

__all__ = ["write_beton"]

MIN_PAGE_BYTES = 1 << 21
"""FFCV's smallest page; a record never crosses the end of a page."""


def write_beton(
    path: Path, records: Iterable[tuple[NDArray[np.uint8], int]], count: int, side: int, channels: int, *, jpeg: bool
) -> None:
    """Write images and labels with fields `image` and `label`.

    Args:
        path: file to write.
        records: (pixels (side, side, channels), or the bytes of a JPEG file; label) in row order.
        count: number of records.
        side: pixels a side.
        channels: of the images; JPEG is decoded by FFCV to three.
        jpeg: whether records hold JPEG files.

    Raises:
        OSError: when the disk is full.
    """
    open_ffcv()
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, HeaderType, get_metadata_type

    image_field = RGBImageField("jpg") if jpeg else NDArrayField(np.dtype("u1"), (side, side, channels))
    fields = {"image": image_field, "label": IntField()}
    metadata = np.zeros(count, get_metadata_type(list(fields.values())))
    table = np.zeros(count, ALLOC_TABLE_TYPE)
    page_bytes = _page_bytes(side * side * channels)
    described = _field_descriptors(fields)
    header_bytes = HeaderType.itemsize + len(described)
    image_column, label_column = metadata["f0"], metadata["f1"]
    with path.open("wb") as file:
        pages = _Pages(file, page_bytes, header_bytes + metadata.nbytes)
        for row, (pixels, label) in enumerate(records):
            pointer = pages.append(pixels)
            if jpeg:
                image_column[row] = (0, side, side, pointer)
            else:
                image_column[row] = pointer
            label_column[row] = label
            table[row] = (row, pointer, pixels.nbytes)
        pages.finish()
        header = np.zeros(1, HeaderType)
        header[0] = (CURRENT_VERSION, len(fields), page_bytes, count, file.tell())
        file.write(table.tobytes())
        file.seek(0)
        file.write(header.tobytes() + described + metadata.tobytes())


class _Pages:
    """The data region: pages of a fixed size, aligned to it, each padded with zeros."""

    def __init__(self, file: BinaryIO, page_bytes: int, region_start: int) -> None:
        self._file = file
        self._page_bytes = page_bytes
        self._start = -(-region_start // page_bytes) * page_bytes
        self._used = 0
        self._file.seek(self._start)

    def append(self, record: NDArray[np.uint8]) -> int:
        """Write one record; returns its place in the file."""
        within = self._used % self._page_bytes
        if within + record.nbytes > self._page_bytes:
            self._pad(self._page_bytes - within)
        pointer = self._start + self._used
        self._file.write(np.ascontiguousarray(record).data)
        self._used += record.nbytes
        return pointer

    def finish(self) -> None:
        """Fill the last page."""
        self._pad(-self._used % self._page_bytes)

    def _pad(self, count: int) -> None:
        self._file.write(bytes(count))
        self._used += count


def _page_bytes(largest_record: int) -> int:
    """The smallest legal page that wastes little: four records of the largest kind, a power of two."""
    size = MIN_PAGE_BYTES
    while size < 4 * largest_record:
        size *= 2
    return size


def _field_descriptors(fields: dict[str, object]) -> bytes:
    """FFCV's table of fields, as its writer lays it out."""
    from ffcv.types import TYPE_ID_HANDLER, FieldDescType

    type_ids = {handler: number for number, handler in TYPE_ID_HANDLER.items()}
    table = np.zeros(len(fields), FieldDescType)
    for entry, (name, field) in zip(table, fields.items(), strict=True):
        entry["type_id"] = type_ids[type(field)]
        entry["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
        entry["arguments"][:] = field.to_binary()[0]  # type: ignore[attr-defined]
    return table.tobytes()
