"""Numbers, and commands to paste, as terminal screens write them."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

__all__ = ["ago", "clock", "duration", "figure", "interpreter", "size"]


def duration(seconds: float) -> str:
    """A time span: 0:07, 12:40, 3:04:05, 2 d 4 h."""
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def clock(when: float) -> str:
    """A time of day, with the date where it is another day than today."""
    local = time.localtime(when)
    today = time.strftime("%Y%m%d") == time.strftime("%Y%m%d", local)
    return time.strftime("%H:%M" if today else "%d %b %H:%M", local)


def ago(when: float) -> str:
    """How long something is past: 3 min ago."""
    seconds = max(0.0, time.time() - when)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size(count: int | float) -> str:
    """Bytes in decimal units, as disks and quotas count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def figure(value: float | None, form: str = ".4f") -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)


def interpreter() -> str:
    """What starts this Python from here: `python`, where that is the one on the path, else its place."""
    found = shutil.which("python")
    if found is not None and Path(found).absolute() == Path(sys.executable).absolute():
        return "python"
    below = os.path.relpath(sys.executable)
    return sys.executable if below.startswith("..") else below
