"""What a search keeps in its sweep's folder, besides what every sweep has.

runs/sweeps/<name>-<digest8>/   study.jsonl (the journal)  search.json (for the report)  held.json (cancelled)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdscale import atomic
from kdscale.errors import StageError
from kdscale.pipeline.artifacts import SweepFolder
from kdscale.pipeline.claims import describe
from kdscale.report.search import DOCUMENT

__all__ = ["JOURNAL", "alone", "asks_on", "hold", "is_held", "is_search", "let_go"]

JOURNAL = "study.jsonl"
HELD = "held.json"
LOCK = "study.lock"


def is_search(folder: Path) -> bool:
    """Whether a sweep's folder is one of a search that has begun."""
    return (folder / JOURNAL).exists()


def asks_on(folder: Path) -> bool:
    """Whether a sweep is a search that has not told all of its trials, and was not cancelled."""
    document = atomic.read_json(folder / DOCUMENT) if is_search(folder) else None
    if document is None or is_held(folder):
        return False
    return len(document["asked"]) < document["trials"] or any(one["state"] == "open" for one in document["asked"])


def hold(folder: Path, reason: str) -> None:
    """Have nothing more asked for, until the sweep's command is given again. To be written before any stage's wish."""
    atomic.write_json(folder / HELD, {"schema": 1, "when": time.time(), "reason": reason})


def is_held(folder: Path) -> bool:
    """Whether the search was cancelled as a whole."""
    return (folder / HELD).exists()


def let_go(folder: Path) -> None:
    """Go on with a search that was cancelled."""
    (folder / HELD).unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the one process that asks and tells; a process that is killed lets go of it.

    Raises:
        StageError: another one is.
    """

    def problem(_: str) -> StageError:
        other = SweepFolder(folder).launcher()
        who = f" by {describe(other)}" if other else ""
        return StageError(f"{folder.name} is searched already{who}: one command at a time asks for its trials")

    with atomic.locked(folder / LOCK, 0.0, problem):
        yield
