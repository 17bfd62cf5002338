"""Which teacher caches may go: those nobody can read any more, old ones, or as many as it takes to fit a size."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdscale.cache.making import locked
from kdscale.errors import CacheError
from kdscale.jobs.cache_places import CachePlace, caches_of
from kdscale.jobs.lineage import Family
from kdscale.jobs.storage import LEFT_OVER_S, REMOVED, measure
from kdscale.jobs.wording import ago
from kdscale.pipeline.artifacts import Root

__all__ = ["Needs", "Spare", "free", "spare"]

AT_REST = frozenset({"done", "failed", "cancelled"})
"""States of a stage in which it asks for nothing."""


@dataclass(frozen=True)
class Spare:
    """Something that may be deleted."""

    path: Path
    why: str
    bytes: int
    place: CachePlace | None = None
    """None for what a process left that was killed."""


class Needs:
    """Who needs caches, of all that lies under a root.

    Args:
        root: looked through once; a cache that is about to go is looked at again.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        family = Family(root)
        self._pinned = family.ancestors(f.digest12 for f in family.stages.values() if f.pinned())
        self._live = {digest[:12] for sweep in root.sweeps() if sweep.launcher() for digest in sweep.plan()["stages"]}

    def of(self, place: CachePlace) -> str:
        """Who needs a cache, and how; empty where nobody does."""
        if not place.writable:
            return "it lies in a read-only root"
        for use in place.uses if place.folder is not None else ():
            if place.is_of(use):
                name, state = use.stage.path.name, use.state
                if use.stage.claimant() is not None:
                    return f"{name} is running"
                if state not in AT_REST:
                    return f"{name} is {state}"
                if use.stage.digest12 in self._live:
                    return f"a live sweep has {name}"
                if use.stage.digest12 in self._pinned:
                    return f"{name} is pinned, or something that was made from it"
        return ""

    def unreadable(self, place: CachePlace) -> str:
        """Why no student can ever read a cache; empty where one can."""
        if place.folder is None:
            return f"cannot be opened: {place.problem}"
        try:
            known = place.teacher
        except CacheError as error:
            return str(error)
        stage = self._root.stage(known["stage"])
        if stage is None:
            return "its teacher is gone"
        state = stage.state()
        now = state["weights"].get(known["selector"]) if state["state"] == "done" else known["weights"]
        return "" if now == known["weights"] else "its teacher was trained again"


def spare(
    root: Root, places: Sequence[CachePlace], needs: Needs, *, older_s: float | None = None, larger_than: int = 0,
    keep_bytes: int | None = None,
) -> list[Spare]:  # fmt: skip
    """What may go; never what somebody needs, nor anything of a root to reuse from.

    Without any choice: caches that no student can ever read, and what killed processes left.

    Args:
        root: where they lie.
        places: its caches.
        needs: who needs which.
        older_s: those that nothing used for so long.
        larger_than: only those that take more bytes.
        keep_bytes: until the rest takes no more: first those of which bytes times time without use is largest.
    """
    idle = [place for place in places if not needs.of(place)]
    sizes = {place.path: measure(place.path)[0] for place in places if place.writable}
    chosen = older_s is not None or keep_bytes is not None or larger_than > 0
    now, found = time.time(), []
    for place in idle:
        unused, why = now - place.last_used, needs.unreadable(place)
        if sizes[place.path] <= larger_than or (older_s is not None and unused < older_s):
            continue
        if older_s is not None or (larger_than and keep_bytes is None):
            why = why or f"last used {ago(place.last_used)}"
        if why or keep_bytes is not None:
            found.append(Spare(place.path, why or f"last used {ago(place.last_used)}", sizes[place.path], place))
    if keep_bytes is not None:
        found = list(_until_it_fits(found, sum(sizes.values()) - keep_bytes, now))
    return [*found, *(() if chosen else _left_overs(root))]


def free(found: Iterable[Spare], root: Root) -> Iterator[tuple[Spare, str]]:
    """Delete; yields each thing with what prevented it, or an empty text.

    A cache is first moved out of sight, so whoever reads it sees it whole or not at all; not one that somebody needs
    by now.
    """
    now, needs = {place.path: place for place in caches_of(root)}, Needs(root)
    for item in found:
        try:
            shutil.rmtree(item.path if item.place is None else _take_out(item.path, now, needs))
            yield item, ""
        except (OSError, CacheError) as error:
            yield item, str(error)


# --------------------------------------------------------------------------- inner parts


def _until_it_fits(found: Sequence[Spare], too_much: int, now: float) -> Iterator[Spare]:
    def burden(item: Spare) -> float:
        return item.bytes * (now - item.place.last_used) if item.place else 0.0

    for item in sorted(found, key=burden, reverse=True):
        if too_much > 0:
            yield item
            too_much -= item.bytes


def _left_overs(root: Root) -> Iterator[Spare]:
    """Caches that a gc was killed over, and half-made ones whose maker was."""
    hidden = root.caches.glob(".*.tmp") if root.caches.is_dir() else ()
    old = [path for path in hidden if time.time() - path.lstat().st_mtime > LEFT_OVER_S]
    for path in (*old, *(root.caches / REMOVED).glob("*")):
        yield Spare(path, "left by a process that was killed", measure(path)[0])


def _take_out(path: Path, places: Mapping[Path, CachePlace], needs: Needs) -> Path:
    """Move a cache out of sight, while nobody makes or grows it. Raises: CacheError where somebody needs it."""
    target = path.parent / REMOVED / f"{path.name}.{time.time_ns()}"
    with locked(path):
        if path not in places or not path.is_dir():
            raise CacheError("it is gone already")
        if why := needs.of(places[path]):
            raise CacheError(f"{why} by now")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return target
