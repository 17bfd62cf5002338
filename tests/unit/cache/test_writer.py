"""Writing: who may, what lies on disk afterwards, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale import atomic
from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import BlockWriter
from kdscale.errors import CacheError, CacheMiss, ShapeError
from tests.unit.cache.filling import bytes_of, cache_of, fill, records_of

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    return cache_of(tmp_path)


@pytest.fixture
def writer(folder: CacheFolder) -> Iterator[BlockWriter]:
    writer = BlockWriter(folder)
    yield writer
    writer.close()


def elsewhere(folder: CacheFolder, block: int) -> bool:
    """Whether another process gets the block."""
    answer = FORK.Queue()
    process = FORK.Process(target=lambda: answer.put(BlockWriter(CacheFolder.open(folder.path)).take(block)))
    process.start()
    taken = answer.get(timeout=30)
    process.join()
    return bool(taken)


@contextmanager
def held_elsewhere(folder: CacheFolder, block: int) -> Iterator[Any]:
    """Another process that has the block, until it is killed."""
    taken = FORK.Event()

    def hold() -> None:
        if BlockWriter(CacheFolder.open(folder.path)).take(block):
            taken.set()
        signal.pause()

    process = FORK.Process(target=hold)
    process.start()
    assert taken.wait(30)
    try:
        yield process
    finally:
        process.kill()
        process.join()


# --------------------------------------------------------------------------- taking


def test_a_block_is_taken_once(folder: CacheFolder, writer: BlockWriter) -> None:
    assert writer.take(2)
    assert writer.take(2)
    assert not elsewhere(folder, 2)
    assert elsewhere(folder, 3)
    writer.release(2)
    writer.release(2)
    assert elsewhere(folder, 2)


def test_a_block_that_is_there_is_not_taken(folder: CacheFolder, writer: BlockWriter) -> None:
    fill_one(writer, 1)
    assert not writer.take(1)
    assert not elsewhere(folder, 1)


def fill_one(writer: BlockWriter, block: int) -> None:
    assert writer.take(block)
    writer.write(block, records_of(writer.folder, block))


def test_a_block_written_just_before_the_lock_is_not_taken(
    folder: CacheFolder, writer: BlockWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, True])
    monkeypatch.setattr(folder, "has", lambda _: next(looks))
    assert not writer.take(1)
    assert elsewhere(folder, 1)


def test_a_killed_holder_lets_go(folder: CacheFolder, writer: BlockWriter) -> None:
    with held_elsewhere(folder, 4) as holder:
        assert not writer.take(4)
        assert not writer.discard(4)
        holder.kill()
        holder.join()
        assert writer.take(4)


def test_locks_outlast_whatever_else_this_process_opens_and_closes(
    folder: CacheFolder, writer: BlockWriter, tmp_path: Path
) -> None:
    assert writer.take(0)
    again = cache_of(tmp_path, views=3)
    CacheReader(fill_with(writer, again, 5)).verify()
    again.missing()
    with pytest.raises(CacheError, match="is written by this process already: close that writer first"):
        BlockWriter(again)
    assert not elsewhere(folder, 0)


def fill_with(writer: BlockWriter, folder: CacheFolder, block: int) -> CacheFolder:
    fill_one(writer, block)
    return folder


def test_closing_lets_go_of_all_and_makes_room(folder: CacheFolder) -> None:
    first = BlockWriter(folder)
    assert first.take(0)
    first.close()
    second = BlockWriter(folder)
    assert elsewhere(folder, 0)
    first.close()
    assert second.take(0)
    assert not elsewhere(folder, 0)
    second.close()


def test_a_forked_child_has_none_of_its_parents_locks(folder: CacheFolder, writer: BlockWriter) -> None:
    """And lets the parent keep them when it ends: with locks of open files it would be the other way round."""
    assert writer.take(0)
    answer = FORK.Queue()
    child = FORK.Process(target=lambda: answer.put(writer.take(0)))
    child.start()
    assert answer.get(timeout=30) is False
    child.join()
    assert not elsewhere(folder, 0)


def test_views_that_were_added_can_be_taken(folder: CacheFolder, writer: BlockWriter, tmp_path: Path) -> None:
    with pytest.raises(CacheMiss, match="has 6 blocks in 2 views, no 6"):
        writer.take(6)
    cache_of(tmp_path, views=3)
    fill_one(writer, 8)
    with pytest.raises(CacheMiss):
        writer.take(-1)


# --------------------------------------------------------------------------- writing


def test_padding_is_zero_whatever_the_padded_batch_said(tmp_path: Path) -> None:
    short, whole = cache_of(tmp_path / "short"), cache_of(tmp_path / "whole")
    for folder, padding in ((short, 0), (whole, 2)):
        writer = BlockWriter(folder)
        for block in range(6):
            records = records_of(folder, block)
            garbage = np.full((padding if len(records) < 4 else 0, 5), 255, np.uint8)
            assert writer.take(block)
            writer.write(block, np.concatenate([records, garbage]))
        writer.close()
    assert bytes_of(short) == bytes_of(whole)
    assert (short.path / "records-00001.bin").read_bytes()[10:20] == bytes(10)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (5, 5), (20,)])
def test_records_of_another_shape_are_refused(shape: tuple[int, ...], folder: CacheFolder, writer: BlockWriter) -> None:
    assert writer.take(0)
    with pytest.raises(ShapeError, match=r"block 0 takes records of shape \(4, 5\), not"):
        writer.write(0, np.zeros(shape, np.uint8))
    assert not folder.has(0)
    assert elsewhere(folder, 0)


def test_a_block_that_was_not_taken_is_not_written(folder: CacheFolder, writer: BlockWriter) -> None:
    with pytest.raises(CacheError, match="block 0 is written without having been taken"):
        writer.write(0, records_of(folder, 0))
    fill_one(writer, 0)
    with pytest.raises(CacheError, match="block 0 is written without having been taken"):
        writer.write(0, records_of(folder, 0))


def test_records_reach_the_disk_before_their_entry(
    folder: CacheFolder, writer: BlockWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.pwrite, []

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        synced = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DSYNC
        written.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, bool(synced)))
        assert folder.has(1) is False
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    fill_one(writer, 1)
    assert written == [("records-00000.bin", True), ("blocks.bin", True)]
    assert folder.has(1)


# --------------------------------------------------------------------------- discarding


def test_a_corrupt_block_is_discarded_and_written_again(folder: CacheFolder, writer: BlockWriter) -> None:
    fill_one(writer, 3)
    before = bytes_of(folder)
    flip(folder.shard(1), 23)
    assert writer.discard(3)
    assert not folder.has(3)
    fill_one(writer, 3)
    assert bytes_of(folder) == before


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def test_a_block_that_somebody_mended_is_not_discarded(folder: CacheFolder, writer: BlockWriter) -> None:
    fill_one(writer, 3)
    assert not writer.discard(3)
    assert folder.has(3)


def test_discarding_lets_go_unless_the_block_was_held(folder: CacheFolder, writer: BlockWriter) -> None:
    assert writer.discard(0)
    assert elsewhere(folder, 0)
    assert writer.take(1)
    assert writer.discard(1)
    assert not elsewhere(folder, 1)


# --------------------------------------------------------------------------- disks


@pytest.mark.parametrize("block", [0, 5])
def test_a_full_disk(block: int, disk: Path) -> None:
    folder = cache_of(disk, record_bytes=20_000)
    ballast = disk / "ballast"
    writer = BlockWriter(folder)
    fill_one(writer, 1)
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
    assert writer.take(block)
    with pytest.raises(OSError, match=rf"No space left on device: '{folder.place(block)[0]}'") as caught:
        writer.write(block, records_of(folder, block))
    assert atomic.is_disk_full(caught.value)
    assert not folder.has(block)
    assert elsewhere(folder, block)
    CacheReader(folder).gather(folder.rows_of(1), 0)
    ballast.unlink()
    fill_one(writer, block)
    writer.close()
    fill(folder, folder.missing().tolist())
    assert not CacheReader(folder).verify()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_an_entry_that_the_disk_refuses(
    number: int, folder: CacheFolder, writer: BlockWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        if len(data) == 16:
            raise OSError(number, os.strerror(number))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert writer.take(0)
    with pytest.raises(OSError, match=r"blocks\.bin") as caught:
        writer.write(0, records_of(folder, 0))
    assert (caught.value.errno, atomic.is_disk_full(caught.value)) == (number, number == errno.EDQUOT)
    assert not folder.has(0)
    assert elsewhere(folder, 0)


def test_a_disk_that_may_only_be_read(disk: Path) -> None:
    folder = fill(cache_of(disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    folder = CacheFolder.open(folder.path)
    assert not folder.writable
    with pytest.raises(
        CacheError, match=rf"^{folder.path} cannot be written \(Read-only file system\): .*another --runs"
    ):
        BlockWriter(folder)
    assert CacheReader(folder).gather(folder.rows_of(4), 1).all()


def test_files_of_somebody_else(folder: CacheFolder) -> None:
    answer = FORK.Queue()

    def write() -> None:
        writer = BlockWriter(folder)
        assert writer.take(0)
        folder.shard(0).chmod(0o400)
        if os.getuid() == 0:  # who may do anything
            os.setuid(65534)
        with pytest.raises(CacheError) as caught:
            writer.write(0, records_of(folder, 0))
        answer.put(str(caught.value))

    process = FORK.Process(target=write)
    process.start()
    assert answer.get(timeout=30).startswith(f"{folder.path} cannot be written (Permission denied): what it lacks must")
    process.join()
    assert elsewhere(folder, 0)


def test_a_file_system_without_locks(folder: CacheFolder, writer: BlockWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "lockf", no_locks)
        with pytest.raises(CacheError, match=r"locks: no file locks here \(No locks available\); mount it with flock"):
            writer.take(0)
    assert writer.take(0)
