"""Metrics of one stage, first of all as lines of a file: training never waits for a tracking server.

A line is `{"step": 50, "epoch": 0.12, "time": 1795200000.1, "metrics": {"train/loss": 2.1}}`. Its time is fixed
when it is written, so shipping it twice is the same point twice. Values that JSON cannot hold are the strings
"nan", "inf" and "-inf", which `float` reads back.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

__all__ = ["Line", "Spool", "read_lines"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a spool."""

    step: int
    epoch: float
    time: float
    """Unix seconds."""
    metrics: dict[str, float]


class Spool:
    """Appends metrics to a file; a `Tracker`.

    A line costs one write into the page cache; only `flush` waits for the disk. Where the disk refuses (full, over
    quota, stale), the lines stay in memory, are said once to be there, and follow as soon as it takes them again.
    """

    def __init__(self, path: Path, resume_at: int | None = None, *, steps_per_epoch: float | int = 0) -> None:
        """Open the spool, made if need be, behind its last whole line.

        Args:
            path: The file.
            resume_at: Bytes that the checkpoint to resume from had written: what lies behind it is dropped,
                because those steps come again. None keeps every whole line.
            steps_per_epoch: Turns steps into the epochs of the lines; 0 where there are no epochs.
        """
        self.path = path
        self._steps_per_epoch = steps_per_epoch
        self._pending = bytearray()
        self._refused = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._written = self._cut(resume_at)

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Append one line; never raises for the disk's sake."""
        line = {
            "step": step,
            "epoch": round(step / self._steps_per_epoch, 4) if self._steps_per_epoch else 0.0,
            "time": round(time.time(), 3),
            "metrics": {name: _plain(value) for name, value in metrics.items()},
        }
        self._pending += json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._write()

    def flush(self) -> int:
        """Put the lines on the disk; returns the spool's length in bytes, those that it still refuses included."""
        self._write()
        try:
            os.fsync(self._file)
        except OSError as error:
            self._say_refused(error)
        return self._written + len(self._pending)

    def close(self) -> None:
        """Flush and let go of the file; a second call does nothing."""
        if self._file < 0:
            return
        self.flush()
        if self._pending:
            log.error("%s: %d bytes of metrics are lost, the disk took them no more", self.path, len(self._pending))
        os.close(self._file)
        self._file = -1

    def _write(self) -> None:
        """Hand over what is pending; a write may be cut short where a disk fills up."""
        try:
            while self._pending:
                taken = os.write(self._file, self._pending)
                self._written += taken
                del self._pending[:taken]
        except OSError as error:
            self._say_refused(error)
            return
        if self._refused:
            self._refused = False
            log.warning("%s: the disk takes metrics again, none is missing", self.path)

    def _say_refused(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            log.warning("%s: %s; metrics stay in memory until the disk takes them", self.path, error.strerror)

    def _cut(self, resume_at: int | None) -> int:
        """Drop what comes again and a torn last line; returns the length."""
        size = os.fstat(self._file).st_size
        if resume_at is not None and size < resume_at:
            log.warning("%s: %d bytes shorter than at the checkpoint: metrics are missing", self.path, resume_at - size)
        end = self._end_of_last_line(size if resume_at is None else min(size, resume_at))
        if end < size:
            os.ftruncate(self._file, end)
        return end

    def _end_of_last_line(self, end: int, chunk: int = 65536) -> int:
        while end > 0:
            start = max(0, end - chunk)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0


def read_lines(content: bytes) -> Iterator[Line]:
    """Read the whole lines of a spool, or of a part of one; what is torn or damaged is left out."""
    for raw in content.split(b"\n"):
        try:
            entry = json.loads(raw)
            metrics = {str(name): float(value) for name, value in entry["metrics"].items()}
            yield Line(int(entry["step"]), float(entry["epoch"]), float(entry["time"]), metrics)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def _plain(value: SupportsFloat) -> float | str:
    """The value as JSON can hold it; also of numpy's and torch's scalars."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
