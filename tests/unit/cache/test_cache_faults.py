"""Whatever dies or is damaged: a block is absent, found corrupt, or right; and filling again makes the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.blocks import ENTRY_BYTES
from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import BlockWriter
from kdscale.errors import CacheCorrupt, CacheMiss
from tests.matrix import LONG
from tests.unit.cache.filling import bytes_of, cache_of, fill, fill_slowly, records_of

FORK = multiprocessing.get_context("fork")
BLOCK_BYTES = 20
TORN = 4
"""The block that is torn: the first of the second view, between others in its shard."""


class Killed(BaseException):
    """Where the process ends."""


def killed_after(count: int) -> Callable[[int, memoryview, int], int]:
    """An os.pwrite that writes `count` bytes in all, and no more."""
    write, left = os.pwrite, [count]

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        cut = min(len(data), left[0])
        left[0] -= cut
        if cut:
            write(handle, data[:cut], offset)
        if cut < len(data):
            raise Killed
        return cut

    return pwrite


def read(reader: CacheReader, block: int) -> bytes | None:
    """The bytes of a block's rows; None where it is absent or found corrupt."""
    view, within = divmod(block, reader.folder.manifest.blocks_per_view)
    try:
        return reader.gather(reader.folder.rows_of(within), view).tobytes()
    except CacheMiss:
        return None
    except CacheCorrupt as error:
        return None if error.block == block else b"another block is said to be corrupt"


def readers_of(folder: CacheFolder) -> list[CacheReader]:
    """One that has read everything there is, and one that knows nothing."""
    old = CacheReader(CacheFolder.open(folder.path))
    for block in np.flatnonzero(folder.sums(0, folder.manifest.blocks)[1]).tolist():
        assert read(old, block) is not None
    return [old, CacheReader(CacheFolder.open(folder.path))]


def check(reader: CacheReader, besides: int) -> None:
    """All other blocks read right."""
    for block in range(reader.folder.manifest.blocks):
        if block != besides:
            assert read(reader, block) == records_of(reader.folder, block).tobytes()


@pytest.fixture
def six(tmp_path: Path) -> CacheFolder:
    """Six blocks in two views and two shards, all of them but one filled."""
    folder = cache_of(tmp_path / "six", np.arange(0, 24, 2), shard_records=12)
    return fill(folder, [block for block in range(6) if block != TORN])


# --------------------------------------------------------------------------- torn writes


@pytest.mark.parametrize("count", range(BLOCK_BYTES + ENTRY_BYTES + 1))
def test_a_write_that_ends_at_any_byte(count: int, six: CacheFolder, tmp_path: Path) -> None:
    readers = readers_of(six)
    writer = BlockWriter(six)
    assert writer.take(TORN)
    whole = count == BLOCK_BYTES + ENTRY_BYTES
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pwrite", killed_after(count))
        if whole:
            writer.write(TORN, records_of(six, TORN))
        else:
            with pytest.raises(Killed):
                writer.write(TORN, records_of(six, TORN))
    assert six.has(TORN) is whole
    for reader in readers:
        assert read(reader, TORN) == (records_of(six, TORN).tobytes() if whole else None)
        check(reader, besides=TORN)
    if not whole:
        assert writer.take(TORN)
        writer.write(TORN, records_of(six, TORN))
    writer.close()
    assert bytes_of(six) == bytes_of(fill(cache_of(tmp_path / "once", np.arange(0, 24, 2), shard_records=12)))
    for reader in readers:
        check(reader, besides=-1)


@pytest.mark.parametrize("lies", ["old", "new", "half"])
@pytest.mark.parametrize("count", range(ENTRY_BYTES + 1))
def test_an_entry_torn_over_an_older_one(count: int, lies: str, six: CacheFolder) -> None:
    """No code of ours does this (a corrupt block is made absent first); a system that loses power may."""
    states = {}
    for name, salt in (("old", 1), ("new", 0)):
        writer = BlockWriter(six)
        writer.discard(TORN)
        put(six.path / "blocks.bin", TORN * ENTRY_BYTES, bytes(ENTRY_BYTES))
        assert writer.take(TORN)
        writer.write(TORN, records_of(six, TORN, salt))
        writer.close()
        states[name] = entry_and_bytes(six)
    (old_entry, old), (new_entry, new) = states["old"], states["new"]
    put(six.path / "blocks.bin", TORN * ENTRY_BYTES, new_entry[:count] + old_entry[count:])
    put(*six.place(TORN), {"old": old, "new": new, "half": new[:9] + old[9:]}[lies])
    right = {("old", 0): old, ("new", ENTRY_BYTES): new}.get((lies, count))
    for reader in (CacheReader(six), CacheReader(CacheFolder.open(six.path))):
        assert read(reader, TORN) == right
        check(reader, besides=TORN)


def entry_and_bytes(folder: CacheFolder) -> tuple[bytes, bytes]:
    file, offset = folder.place(TORN)
    entries = (folder.path / "blocks.bin").read_bytes()
    return (
        entries[TORN * ENTRY_BYTES : (TORN + 1) * ENTRY_BYTES],
        file.read_bytes()[offset : offset + BLOCK_BYTES],
    )


def put(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


# --------------------------------------------------------------------------- damage


@pytest.mark.parametrize("bit", range(8 * ENTRY_BYTES))
def test_a_flipped_bit_of_an_entry_makes_its_block_absent(bit: int, six: CacheFolder) -> None:
    fill(six, [TORN])
    flip(six.path / "blocks.bin", 8 * TORN * ENTRY_BYTES + bit)
    assert six.missing().tolist() == [TORN]
    with pytest.raises(CacheMiss, match=rf"{six.path} does not hold block 4 of view 1\. Fill it: run python launch"):
        CacheReader(six).gather(six.rows_of(TORN), 1)
    check(CacheReader(six), besides=TORN)


@pytest.mark.parametrize("bit", range(8 * BLOCK_BYTES))
def test_a_flipped_bit_of_a_block_is_found(bit: int, six: CacheFolder) -> None:
    fill(six, [TORN])
    file, offset = six.place(TORN)
    flip(file, 8 * offset + bit)
    reader = CacheReader(six)
    with pytest.raises(CacheCorrupt, match=rf"^{file}: block 4 does not match its checksum") as caught:
        reader.gather(six.rows_of(TORN)[:1], 1)
    assert caught.value.block == TORN
    assert reader.verify() == [TORN]
    check(reader, besides=TORN)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    put(file, 0, bytes(content))


def test_blocks_and_entries_mean_nothing_elsewhere(tmp_path: Path) -> None:
    """At another block's place, or in another cache."""
    twin = {"identity": {"teacher": "another"}}
    folder, other = fill(cache_of(tmp_path)), fill(cache_of(tmp_path, **twin))
    entries = (folder.path / "blocks.bin").read_bytes()
    put(folder.path / "blocks.bin", 0, entries[16:32] + entries[:16])
    assert folder.missing().tolist() == [0, 1]
    shutil.copyfile(folder.path / "blocks.bin", other.path / "blocks.bin")
    assert len(other.missing()) == other.manifest.blocks
    put(folder.path / "blocks.bin", 0, entries)
    shard = folder.shard(0).read_bytes()
    put(folder.shard(0), 0, shard[20:] + shard[:20])
    assert CacheReader(folder).verify() == [0, 1]


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 5 // 8)


def flipped(file: Path) -> None:
    for bit in (3, 8 * (file.stat().st_size - 1)):
        flip(file, bit)


def zeroed(file: Path) -> None:
    """What a file system may leave after a crash: the right length, and nothing in it."""
    put(file, 0, bytes(file.stat().st_size))


def mend(writer: BlockWriter, block: int | None) -> int:
    """Write a corrupt block again."""
    assert block is not None
    assert writer.discard(block)
    assert writer.take(block)
    writer.write(block, records_of(writer.folder, block))
    return block


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("damage", [emptied, cut, Path.unlink, flipped, zeroed])
@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_damaged_shard_is_found_and_mended(
    damage: Callable[[Path], None], shard: int, when: str, tmp_path: Path
) -> None:
    rows = np.arange(1000, dtype=np.int64)  # shards of several pages: what lies behind the end cannot be touched
    folder = fill(cache_of(tmp_path, rows, block_rows=100, shard_records=1000, record_bytes=50, views=2))
    before, reader = bytes_of(folder), CacheReader(CacheFolder.open(folder.path))
    if when == "while it is read":
        reader.gather(rows, 0)
        reader.gather(rows, 1)
    damage(folder.shard(shard))
    if when == "while it is read" and damage in (flipped, zeroed):
        assert reader.verify()  # what was verified once is trusted until somebody looks
    bad = CacheReader(folder).verify()
    writer, mended = BlockWriter(folder), []
    for _ in range(folder.manifest.blocks + 1):
        try:
            found = reader.gather(rows, shard)
            break
        except CacheCorrupt as error:
            mended.append(mend(writer, error.block))
            reader.forget(mended[-1])
    writer.close()
    np.testing.assert_array_equal(found, np.concatenate([records_of(folder, b) for b in folder.blocks_of_view(shard)]))
    if when == "while it is read" and damage is Path.unlink:
        assert mended == []  # the map keeps a removed file's bytes
    else:
        assert mended == bad
        assert mended
        assert bytes_of(folder) == before


@pytest.mark.parametrize("damage", [emptied, cut, Path.unlink, zeroed])
def test_damaged_entries_are_written_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = fill(cache_of(tmp_path))
    before = bytes_of(folder)
    damage(folder.path / "blocks.bin")
    missing = folder.missing().tolist()
    assert missing == ([3, 4, 5] if damage is cut else list(range(6)))
    fill(folder, missing)
    assert bytes_of(folder) == before


def test_a_shard_that_was_cut_and_made_long_again_is_not_trusted(tmp_path: Path) -> None:
    """One block of a cut shard is mended: the file has its length again, and holes where others were."""
    rows = np.arange(1000, dtype=np.int64)
    folder = fill(cache_of(tmp_path, rows, block_rows=100, shard_records=1000, record_bytes=50, views=1))
    reader = CacheReader(folder)
    reader.gather(rows, 0)
    os.truncate(folder.shard(0), 100)
    with pytest.raises(CacheCorrupt) as caught:
        reader.gather(rows[-1:], 0)
    assert caught.value.block == 9
    put(folder.shard(0), 45_000, records_of(folder, 9).tobytes())
    reader.forget(9)
    np.testing.assert_array_equal(reader.gather(rows[-1:], 0)[0], records_of(folder, 9)[-1])
    with pytest.raises(CacheCorrupt) as caught:
        reader.gather(rows[500:510], 0)
    assert caught.value.block == 5


# --------------------------------------------------------------------------- kills


@pytest.mark.parametrize("round_", range(50 if LONG else 4))
def test_fillers_that_are_killed_fill_what_one_fills(round_: int, tmp_path: Path) -> None:
    shape = {"block_rows": 5, "shard_records": 60, "record_bytes": 300, "views": 3}
    rows = np.arange(0, 404, 2)
    folder, log = cache_of(tmp_path / "together", rows, **shape), tmp_path / "written"
    log.touch()
    order, seeds = random.Random(round_), iter(range(1000 * round_, 1000 * round_ + 1000))

    def start() -> multiprocessing.process.BaseProcess:
        process = FORK.Process(target=fill_slowly, args=(folder.path, log, next(seeds)))
        process.start()
        return process

    processes = [start() for _ in range(4)]
    while len(folder.missing()):
        time.sleep(order.uniform(0, 0.03))
        victim = order.randrange(4)
        processes[victim].kill()
        processes[victim].join()
        processes[victim] = start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    written = log.read_text().split()
    assert len(written) == len(set(written))
    assert bytes_of(folder) == bytes_of(fill(cache_of(tmp_path / "alone", rows, **shape)))
    assert CacheReader(folder).verify() == []
