"""Ctrl-C while a sweep runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["OnSignals"]


class OnSignals:
    """Turn Ctrl-C and SIGTERM into a request while a sweep runs."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        def asked(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._act()

        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, asked)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
