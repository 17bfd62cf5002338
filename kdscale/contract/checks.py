"""A promise that plug-ins keep, and what comes of holding one of them to it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from kdscale.errors import KDScaleError

__all__ = ["Broken", "Check", "Result", "Skipped", "Subject", "held_to", "place", "shown"]


@runtime_checkable
class Subject(Protocol):
    """Somebody's class, as a check looks at it."""

    @property
    def file(self) -> Path: ...


S = TypeVar("S", bound=Subject)


class Broken(Exception):
    """A promise that is not kept.

    Args:
        said: what happens instead.
        mend: what would keep it.
        where: file and line, where they are known.
    """

    def __init__(self, said: str, mend: str = "", *, where: str = "") -> None:
        super().__init__(f"{said}{f' ({where})' if where else ''}{f'; {mend}' if mend else ''}")
        self.said, self.mend, self.where = said, mend, where


class Skipped(Exception):
    """A promise that this plug-in does not give, and why."""


@dataclass(frozen=True)
class Check(Generic[S]):
    """One promise."""

    promise: str
    """As a line on the screen."""
    run: Callable[[S], str | None]
    """Raises Broken or Skipped; returns what else is worth saying."""
    first: bool = False
    """Whether the promises after it can only be asked once it is kept."""


class Result(NamedTuple):
    """What one check found."""

    state: Literal["ok", "FAIL", "skip"]
    promise: str
    said: str = ""
    where: str = ""
    mend: str = ""


def held_to(check: Check[S], subject: S) -> Result:
    """Hold a plug-in to one promise; whatever its code raises is a promise broken."""
    try:
        return Result("ok", check.promise, check.run(subject) or "")
    except Skipped as why:
        return Result("skip", check.promise, str(why))
    except Broken as error:
        return Result("FAIL", check.promise, error.said, error.where, error.mend)
    except KDScaleError as error:
        return Result("FAIL", check.promise, str(error), place(error.__traceback__, subject.file))
    except Exception as error:  # noqa: BLE001 - a user's own code may raise anything
        said = f"raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Result("FAIL", check.promise, said, place(error.__traceback__, subject.file))


def place(trace: TracebackType | None, file: Path) -> str:
    """The innermost line of a file that an exception came through; empty when it is not in it."""
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if Path(frame.filename) == file]
    return f"{shown(file)}:{lines[-1]}" if lines else ""


def shown(file: Path) -> str:
    """A path as it is typed from here."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)
