"""A debugger that begins in a frame of the user's, not in what torch calls before it is back there."""

from __future__ import annotations

import pdb
import sys
from types import FrameType

__all__ = ["stop_in"]


def stop_in(frame: FrameType | None) -> None:
    """Open a debugger at the next line of a frame; where there is none, in the caller's."""
    frame = frame or sys._getframe(1)
    _There(frame).set_trace(frame)


class _There(pdb.Pdb):
    """Where it begins, it steps over calls."""

    def __init__(self, frame: FrameType) -> None:
        super().__init__()
        self._first: FrameType | None = frame

    def set_step(self) -> None:
        if self._first is None:
            super().set_step()
        else:
            frame, self._first = self._first, None
            self.set_next(frame)
