"""`launch/cache.py gc`: say which caches go and which stay, ask, delete."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kdscale.errors import ConfigError
from kdscale.jobs.cache_places import CachePlace, caches_of
from kdscale.jobs.cache_spare import Needs, Spare, free, spare
from kdscale.jobs.housekeeping import LISTED, seconds
from kdscale.jobs.wording import size
from kdscale.pipeline.artifacts import Root

__all__ = ["byte_count", "gc"]

UNITS = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def gc(  # noqa: PLR0913
    root: Root, console: Console, *, older: str | None, larger: str | None, keep: str | None, dry_run: bool, yes: bool
) -> int:
    """Delete caches; returns 1 when one could not be.

    Raises:
        ConfigError: an age or a size that is none, or it would ask and there is nobody to answer.
    """
    older_s = None if older is None else _age(older)
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


def byte_count(text: str, flag: str) -> int:
    """A size such as 500MB or 2TB, in decimal units. Raises: ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?B?)", text.strip())
    if match is None or (unit := match[2].upper().removesuffix("B") + "B" if match[2] else "") not in UNITS:
        raise ConfigError(f"{flag} {text}: a number with kB, MB, GB or TB, for example 500GB")
    return int(float(match[1]) * UNITS[unit])


# --------------------------------------------------------------------------- inner parts


def _age(text: str) -> float:
    """In seconds; a bare number means days. Raises: ConfigError."""
    return seconds(f"{text}d" if re.fullmatch(r"[\d.]+", text) else text, "--older-than")


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
