"""What the main thread spends its time on, by name; recorded only while somebody measures.

Whoever does a part of a training step says so where it is done, `with phase("backward"):`. Phases nest, and each is
charged what none inside it is. Where nobody measures, one costs a third of a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

__all__ = ["Recorder", "phase", "recorded_by", "waiting"]

Item = TypeVar("Item")


@runtime_checkable
class Recorder(Protocol):
    """Told of every phase, in the order in which they begin and end."""

    def enter(self, name: str) -> None:
        """A phase begins, inside of those that have not ended."""

    def leave(self) -> None:
        """The innermost one ends."""


class phase:
    """Charge what happens inside to a name."""

    __slots__ = ("_name", "_told")
    recorder: ClassVar[Recorder | None] = None
    """Of this process, which trains one stage on one thread."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._told = phase.recorder  # who is told of its begin is told of its end
        if self._told is not None:
            self._told.enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._told is not None:
            self._told.leave()


def waiting(items: Iterable[Item], name: str) -> Iterator[Item]:
    """Yield items, charging the wait for each to a name."""
    iterator, end = iter(items), object()
    while True:
        with phase(name):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]


@contextmanager
def recorded_by(recorder: Recorder) -> Iterator[None]:
    """Have phases told to a recorder, and to nobody else."""
    before, phase.recorder = phase.recorder, recorder
    try:
        yield
    finally:
        phase.recorder = before
