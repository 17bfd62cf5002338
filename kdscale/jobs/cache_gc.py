"""Which teacher caches may go: those nobody can read any more, old ones, or as many as it takes to fit a size."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kdscale.cache.making import locked
from kdscale.errors import CacheError, ConfigError
from kdscale.jobs.cache_places import CachePlace, caches_of, occupied
from kdscale.jobs.housekeeping import LISTED, seconds
from kdscale.jobs.lineage import Family
from kdscale.jobs.storage import LEFT_OVER_S, REMOVED
from kdscale.jobs.wording import ago, size
from kdscale.pipeline.artifacts import Root

__all__ = ["Needs", "Spare", "byte_count", "free", "gc", "spare"]

AT_REST = frozenset({"done", "failed", "cancelled"})
"""States of a stage in which it asks for nothing."""
UNITS = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


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


def gc(  # noqa: PLR0913
    root: Root, console: Console, *, older: str | None, larger: str | None, keep: str | None, dry_run: bool, yes: bool
) -> int:
    """Delete caches; returns 1 when one could not be.

    Raises:
        ConfigError: an age or a size that is none, or it would ask and there is nobody to answer.
    """
    older_s = None if older is None else seconds(f"{older}d" if re.fullmatch(r"[\d.]+", older) else older, "--older-than")
    floor = byte_count(larger, "--larger-than") if larger else 0
    rest = byte_count(keep, "--keep-bytes") if keep else None
    needs, places = Needs(root), caches_of(root)
    found = spare(root, places, needs, older_s=older_s, larger_than=floor, keep_bytes=rest)
    _print_kept(places, {item.path for item in found}, needs, console)
    if not found:
        console.print("nothing to free")
        return 0
    _print_found(found, console)
    caches = sum(item.place is not None for item in found)
    if dry_run or not (yes or not caches or _agreed(f"this deletes {caches} cache{'s' * (caches > 1)}")):
        return 0
    freed, failed = 0, 0
    for item, problem in free(found, root):
        freed, failed = freed + (0 if problem else item.bytes), failed + bool(problem)
        if problem:
            console.print(Text(f"kept {item.path.name}: {problem}", style="yellow"), soft_wrap=True)
    console.print(f"freed {size(freed)}", highlight=False)
    return int(failed > 0)


def spare(  # noqa: PLR0913
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
    sizes = {place.path: occupied(place.path) for place in places if place.writable}
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

    A cache is first moved out of sight, so whoever reads it sees it whole or not at all.
    """
    for item in found:
        try:
            if item.place is None:
                shutil.rmtree(item.path)
            else:
                shutil.rmtree(_take_out(item.place, root))
            yield item, ""
        except (OSError, CacheError) as error:
            yield item, str(error)


def byte_count(text: str, flag: str) -> int:
    """A size such as 500MB or 2TB, in decimal units. Raises: ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?B?)", text.strip())
    if match is None or (unit := match[2].upper().removesuffix("B") + "B" if match[2] else "") not in UNITS:
        raise ConfigError(f"{flag} {text}: a number with kB, MB, GB or TB, for example 500GB")
    return int(float(match[1]) * UNITS[unit])


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
        yield Spare(path, "left by a process that was killed", occupied(path))


def _take_out(place: CachePlace, root: Root) -> Path:
    """Move a cache out of sight, while nobody makes or grows it. Raises: CacheError where somebody needs it by now."""
    target = place.path.parent / REMOVED / f"{place.path.name}.{time.time_ns()}"
    with locked(place.path):
        (now,) = [p for p in caches_of(root) if p.path == place.path] or [None]
        if now is None:
            raise CacheError("it is gone already")
        if why := Needs(root).of(now):
            raise CacheError(f"{why} by now")
        target.parent.mkdir(exist_ok=True)
        place.path.rename(target)
    return target


def _print_found(found: Sequence[Spare], console: Console) -> None:
    for item in sorted(found, key=lambda item: -item.bytes)[:LISTED]:
        console.print(Text(f"{size(item.bytes):>9}  {item.path.name}   {item.why}"), soft_wrap=True)
    if len(found) > LISTED:
        console.print(Text(f"{'':9}  and {len(found) - LISTED} more"))
    console.print(Text(f"{size(sum(item.bytes for item in found)):>9}  in all", style="bold"))


def _print_kept(places: Sequence[CachePlace], going: set[Path], needs: Needs, console: Console) -> None:
    """Say what protects those that stay because somebody needs them."""
    for place in places:
        why = needs.of(place) if place.writable and place.path not in going else ""
        if why:
            console.print(Text(f"{'':9}  {place.path.name}   stays: {why}", style="dim"), soft_wrap=True)


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}: say --yes")
    return input(f"{what}; go on? [y/N] ").strip().lower() in ("y", "yes")
