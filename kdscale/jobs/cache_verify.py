"""Whether caches are whole: blocks against their checksums, some records against the live teacher; and repair."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from kdscale import draws
from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from kdscale.cache.reader import Progress as Told
from kdscale.cache.writer import BlockWriter
from kdscale.errors import CacheError, DataError, StageError
from kdscale.jobs.cache_difference import Difference
from kdscale.jobs.cache_places import CachePlace, cache_named, caches_of
from kdscale.pipeline.artifacts import Root

__all__ = ["BadBlock", "Verdict", "recompute", "repair", "verify"]


@dataclass(frozen=True)
class BadBlock:
    """A block whose bytes do not match its checksum."""

    file: str
    block: int
    view: int
    first_row: int
    last_row: int
    """Rows of the train set; a cache holds them in ascending order."""


@dataclass
class Verdict:
    """What is known of one cache after looking."""

    cache: str
    path: str
    problem: str = ""
    """Why it could not be looked at."""
    read: int = 0
    """Blocks that were compared."""
    absent: int = 0
    bad: list[BadBlock] = field(default_factory=list)
    repaired: int = 0
    difference: Difference | None = None

    @property
    def wrong(self) -> bool:
        """Whether something is wrong with it that was not repaired."""
        differs = self.difference is not None and self.difference.wrong
        return bool(self.problem) or len(self.bad) > self.repaired or differs

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        difference = None
        if self.difference is not None:
            difference = asdict(self.difference) | {"wrong": self.difference.wrong}
            del difference["layout"]
        return {**asdict(self), "difference": difference, "wrong": self.wrong}


def verify(  # noqa: PLR0913
    root: Root, name: str | None, console: Console, *, records: int, seed: int, mends: bool, as_json: bool
) -> int:
    """Look through one cache, or all; returns 1 where something is wrong and was not repaired.

    Args:
        root: where caches are.
        name: of the cache; None looks at all.
        console: what is found is printed on it.
        records: how many random ones the live teacher is asked for again.
        seed: which those are.
        mends: whether damaged blocks are made anew.
        as_json: print one document and no progress.

    Raises:
        ConfigError: no such cache.
    """
    verdicts = []
    for place in [cache_named(name, root)] if name else caches_of(root):
        with _progress(place.path.name, console, quiet=as_json) as told:
            verdict = _judge(place, root, told, records=records, seed=seed, mends=mends)
        verdicts.append(verdict)
        if not as_json:
            _print(verdict, console)
    if as_json:
        document = {"schema": 1, "root": str(root.path), "caches": [one.document() for one in verdicts]}
        console.print(json.dumps(document), markup=False, highlight=False, soft_wrap=True)
    elif not verdicts:
        console.print(Text(f"{root.path} holds no teacher cache (another --runs?)"), soft_wrap=True)
    return int(any(verdict.wrong for verdict in verdicts))


def recompute(place: CachePlace, root: Root, records: int, seed: int) -> Difference:
    """Ask the live teacher for some random records again.

    Whole slices are answered, as in filling: so the bytes are equal on the machine that filled.

    Args:
        place: the cache.
        root: where its teacher is.
        records: how many, of the blocks that are there and intact; all where there are fewer.
        seed: which.

    Raises:
        StageError: the teacher is not there, or another by now.
    """
    from kdscale.jobs.cache_teacher import filler_of

    folder, filler = place.opened, filler_of(place, root)
    found, each = Difference(place.layout), folder.manifest.block_rows
    for block, within in _chosen(folder, records, seed):
        view, there = block // folder.manifest.blocks_per_view, _block(folder, block)
        pieces = filler.slices_of(block)
        width = len(pieces[0])
        assert width * len(pieces) == each
        for number in np.unique(within // width):
            (now,) = filler.answers([pieces[int(number)]], view)
            mine = within[within // width == number]
            found.add(there[mine], now.numpy()[mine % width])
    return found


def repair(place: CachePlace, root: Root, bad: Sequence[int]) -> list[int]:
    """Make damaged blocks anew with the live teacher.

    Args:
        place: the cache.
        root: where its teacher is.
        bad: numbers of the blocks, ascending.

    Returns:
        Those that are whole now.

    Raises:
        CacheError: the cache cannot be written.
        StageError: the teacher is not there, or another by now; nothing was changed.
    """
    from kdscale.jobs.cache_teacher import filler_of

    folder = place.opened
    if not place.writable:
        raise CacheError(f"{place.path} lies in a read-only root (KDSCALE_REUSE): its owner must repair it")
    filler = filler_of(place, root)
    writer = BlockWriter(folder)
    try:
        for block in bad:
            writer.discard(block)
    finally:
        writer.close()
    filler.fill(bad)
    return [block for block in bad if folder.intact(block)]


# --------------------------------------------------------------------------- inner parts


def _judge(place: CachePlace, root: Root, told: Told, *, records: int, seed: int, mends: bool) -> Verdict:
    verdict = Verdict(place.path.name, str(place.path))
    try:
        folder = place.opened
        verdict.absent = len(folder.missing())
        verdict.read = folder.manifest.blocks - verdict.absent
        bad = CacheReader(folder).verify(told=told)
        verdict.bad = [_bad(folder, block) for block in bad]
        if bad and mends:
            verdict.repaired = len(repair(place, root, bad))
        if records:
            verdict.difference = recompute(place, root, records, seed)
    except (CacheError, DataError, StageError) as error:  # of one cache; the others are looked at all the same
        verdict.problem = str(error)
    return verdict


def _bad(folder: CacheFolder, block: int) -> BadBlock:
    rows = folder.rows_of(block)
    view = block // folder.manifest.blocks_per_view
    return BadBlock(folder.place(block)[0].name, block, view, int(rows[0]), int(rows[-1]))


def _chosen(folder: CacheFolder, records: int, seed: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Random records of whole blocks: each block with the places in it."""
    whole = np.setdiff1d(np.arange(folder.manifest.blocks), folder.missing())
    counts = np.array([len(folder.rows_of(int(block))) for block in whole], np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    picked = np.sort(_some(total, min(records, total), seed))
    blocks = np.searchsorted(ends, picked, side="right")
    for at in np.unique(blocks):
        block, mine = int(whole[at]), picked[blocks == at] - (ends[at] - counts[at])
        if folder.intact(block):
            yield block, mine


def _some(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """Different numbers below `total`, as many as `count`."""
    key = draws.seed_of("verify", seed)
    if 2 * count > total:
        return np.argsort(draws.hash64(key, np.arange(total)), kind="stable")[:count]
    found = np.zeros(0, np.int64)
    while len(found) < count:  # in the order they are drawn, without those that came before
        tries = np.arange(2 * len(found) + 2 * count)
        drawn = (draws.hash64(key, tries) % np.uint64(total)).astype(np.int64)
        found = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return found[:count]


def _block(folder: CacheFolder, block: int) -> NDArray[np.uint8]:
    """The records of a block (n, R), without padding."""
    view = block // folder.manifest.blocks_per_view
    return CacheReader(folder).gather(folder.rows_of(block), view)


@contextmanager
def _progress(name: str, console: Console, *, quiet: bool) -> Iterator[Told]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not quiet
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


# --------------------------------------------------------------------------- screen


def _print(verdict: Verdict, console: Console) -> None:
    for line in _lines(verdict):
        console.print(Text(line), soft_wrap=True)


def _lines(verdict: Verdict) -> Iterator[str]:
    absent = f", {verdict.absent:,} are not there yet" if verdict.absent else ""
    said = "all match" if not verdict.bad else f"{len(verdict.bad):,} DAMAGED"
    yield f"{verdict.cache}  {verdict.read:,} blocks read, {said}{absent}"
    for bad in verdict.bad:
        yield f"  {bad.file}  block {bad.block}  view {bad.view}  rows {bad.first_row} to {bad.last_row}"
    if verdict.repaired:
        yield f"  {verdict.repaired:,} made anew"
    elif verdict.bad:
        yield f"  python launch/cache.py verify {verdict.cache} --repair makes them anew"
    if verdict.difference is not None:
        yield from _compared(verdict.difference)
    if verdict.problem:
        yield f"  WRONG  {verdict.problem}"


def _compared(found: Difference) -> Iterator[str]:
    if not found.records:
        yield "  nothing is there to be recomputed"
        return
    yield f"  {found.records:,} records recomputed: {found.equal:,} equal in every byte, largest differences:"
    yield f"    logits {found.logits:.3g}" + (f", pooled features {found.pooled:.3g}" if found.layout.pooled else "")
    for temperature, apart in found.probabilities.items():
        yield f"    probabilities at temperature {temperature:g}: {apart:.3g}"
    if found.layout.kind == "topk":
        drawn = f", {found.drawn:,} of drawn classes" if found.layout.draws else ""
        yield f"    {found.indices:,} of {found.records * found.layout.k:,} kept classes differ{drawn}"
    if found.wrong:
        yield (
            f"  WRONG  {found.beyond:,} records differ by more than rounding explains: filled on another machine, "
            "by another torch, or not by this teacher; fill a cache of your own to compare with (--runs)"
        )
