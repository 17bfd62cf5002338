"""Reads on in a file that grows by lines, is cut back now and then, and grows again."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["goes_on", "mark_at", "whole_lines"]

READ_BYTES = 1 << 20
MARK_BYTES = 256


def mark_at(file: BinaryIO, offset: int) -> int:
    """Checksum of what stands just before `offset`."""
    start = max(0, offset - MARK_BYTES)
    file.seek(start)
    return zlib.crc32(file.read(offset - start))


def goes_on(file: BinaryIO, offset: int, mark: int) -> bool:
    """Whether what was read up to `offset` still stands there.

    A resumed stage cuts its spool back and writes those steps again, with other times: the place is then another one
    even where the file has grown past it.
    """
    return offset == 0 or (os.fstat(file.fileno()).st_size >= offset and mark_at(file, offset) == mark)


def whole_lines(file: BinaryIO, offset: int) -> Iterator[bytes]:
    """Yield whole lines from `offset` on, about a megabyte at a time; a line that is still written is left."""
    while True:
        file.seek(offset)
        content = file.read(READ_BYTES)
        content = content[: content.rfind(b"\n") + 1]
        if not content:
            return
        yield content
        offset += len(content)
