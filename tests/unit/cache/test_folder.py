"""Caches on disk: made whole or not at all, found again, refused when they hold something else."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale import atomic
from kdscale.cache import locks
from kdscale.cache.folder import CacheFolder
from kdscale.cache.manifest import Manifest
from kdscale.errors import CacheCorrupt, CacheError, CacheMiss, CacheStale
from tests.unit.cache.filling import bytes_of, cache_of, fill, manifest_of

FORK = multiprocessing.get_context("fork")
TEN = np.arange(10, dtype=np.int64)


def test_an_empty_cache_has_all_its_files_and_no_block(tmp_path: Path) -> None:
    folder = cache_of(tmp_path / "runs" / "caches")
    names = ["blocks.bin", "locks", "manifest.json", "records-00000.bin", "records-00001.bin", "records-00002.bin"]
    assert sorted(bytes_of(folder)) == [*names, "rows.bin"]
    assert [(folder.path / name).stat().st_size for name in names if name.startswith("records")] == [40, 40, 40]
    assert folder.path.name == folder.manifest.digest[:12]
    assert folder.writable
    np.testing.assert_array_equal(folder.missing(), np.arange(6))


def test_nothing_on_disk_tells_when_where_or_by_whom(tmp_path: Path) -> None:
    folders = [fill(cache_of(tmp_path / name)) for name in ("here", "there")]
    assert bytes_of(folders[0]) == bytes_of(folders[1])


def test_making_it_twice_finds_it(tmp_path: Path) -> None:
    folder = fill(cache_of(tmp_path), [0, 3])
    before = bytes_of(folder)
    again = cache_of(tmp_path)
    assert (again.path, again.manifest) == (folder.path, folder.manifest)
    assert bytes_of(again) == before
    assert again.missing().tolist() == [1, 2, 4, 5]
    assert again.missing(1, 4).tolist() == [1, 2]
    assert [again.has(block) for block in range(6)] == [True, False, False, True, False, False]


def test_blocks_and_their_rows(tmp_path: Path) -> None:
    folder = cache_of(tmp_path, np.arange(0, 30, 3))
    assert [list(folder.blocks_of_view(view)) for view in range(2)] == [[0, 1, 2], [3, 4, 5]]
    assert [folder.rows_of(block).tolist() for block in range(3, 6)] == [[0, 3, 6, 9], [12, 15, 18, 21], [24, 27]]
    assert [folder.place(block)[0].name for block in range(6)] == [
        f"records-0000{shard}.bin" for shard in (0, 0, 1, 1, 2, 2)
    ]
    assert [folder.place(block)[1] for block in range(6)] == [0, 20, 0, 20, 0, 20]


@given(
    rows=st.sets(st.integers(0, 50) | st.integers(0, 2**50), min_size=1, max_size=30),
    asked=st.lists(st.integers(-3, 60) | st.integers(-(2**60), 2**60), max_size=10),
)
def test_positions_are_those_in_the_file(
    rows: set[int], asked: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    held = sorted(rows)
    folder = cache_of(tmp_path_factory.mktemp("caches"), np.array(held, np.int64))
    assert folder.positions(np.array(held[::-1], np.int64)).tolist() == list(range(len(held)))[::-1]
    absent = [row for row in asked if row not in rows]
    if absent:
        with pytest.raises(
            CacheMiss, match=f"holds no row ({'|'.join(map(str, absent))}): it was made for {len(held)} "
        ):
            folder.positions(np.array(asked, np.int64))
    else:
        assert [held[place] for place in folder.positions(np.array(asked, np.int64))] == asked


def test_importing_a_cache_leaves_torch_out() -> None:
    code = "import sys, kdscale.cache.reader, kdscale.cache.writer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (TEN[:9], "these 9 rows are not those of the manifest"),
        (TEN + 1, "these 10 rows are not those of the manifest"),
    ],
)
def test_rows_that_are_not_the_manifests(rows: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=says):
        CacheFolder.create(tmp_path, manifest_of(TEN), rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [TEN[::-1], np.zeros(2, np.int64), TEN - 1], ids=["falling", "twice", "below 0"])
def test_rows_must_ascend(rows: Any, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="must be row numbers in ascending order, each once"):
        cache_of(tmp_path, np.ascontiguousarray(rows))


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(CacheMiss, match=r"none holds no cache: it was never filled, or it was removed"):
        CacheFolder.open(tmp_path / "none")


def test_another_identity_is_stale_and_says_how(tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    CacheFolder.open(folder.path, folder.manifest.identity)
    other = {**folder.manifest.identity, "teacher": {"weights": "9a04c7", "digest": "77"}, "data": "mnist"}
    with pytest.raises(CacheStale) as caught:
        CacheFolder.open(folder.path, other)
    assert str(caught.value).splitlines() == [
        f"{folder.path} holds other answers than what is asked for; fill another, or remove it:",
        '  data: expected "mnist", found "digits"',
        '  teacher.weights: expected "9a04c7", found "3f21ab"',
    ]


def test_a_long_difference_is_cut(tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    with pytest.raises(CacheStale) as caught:
        CacheFolder.open(folder.path, {**folder.manifest.identity, "more": list(range(30))})
    assert len(str(caught.value).splitlines()) == 14
    assert str(caught.value).endswith("... and 18 more")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"record_bytes": 6}, "record_bytes: expected 6, found 5"),
        ({"block_rows": 2}, "block_rows: expected 2, found 4"),
        ({"rows": TEN[:8]}, "rows: expected 8, found 10"),
    ],
)
def test_the_same_identity_with_another_shape_is_stale(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    cache_of(tmp_path)
    with pytest.raises(CacheStale, match=says):
        cache_of(tmp_path, **changes)


def test_a_cache_keeps_its_shard_size(tmp_path: Path) -> None:
    cache_of(tmp_path)
    assert cache_of(tmp_path, shard_records=80).manifest.shard_records == 8


def test_a_later_schema_is_not_touched(tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    (folder.path / "manifest.json").write_text('{"schema": 2, "shape": "unknown"}')
    before = bytes_of(folder)
    for ask in (lambda: CacheFolder.open(folder.path), lambda: cache_of(tmp_path), lambda: cache_of(tmp_path, views=9)):
        with pytest.raises(CacheStale, match="later kdscale, schema 2; this one reads 1: update, or fill another"):
            ask()
    assert bytes_of(folder) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_an_unreadable_manifest(content: bytes, tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    (folder.path / "manifest.json").write_bytes(content)
    with pytest.raises(CacheCorrupt, match=r"manifest\.json .*remove the folder and fill it again"):
        CacheFolder.open(folder.path)


def test_a_manifest_that_cannot_be_opened(tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    (folder.path / "manifest.json").unlink()
    (folder.path / "manifest.json").mkdir()
    with pytest.raises(CacheError, match=r"manifest\.json cannot be read: Is a directory"):
        CacheFolder.open(folder.path)


def test_a_folder_that_lost_its_manifest(tmp_path: Path) -> None:
    folder = fill(cache_of(tmp_path))
    (folder.path / "manifest.json").unlink()
    with pytest.raises(CacheMiss):
        CacheFolder.open(folder.path)
    with pytest.raises(CacheCorrupt, match="has lost its manifest: remove the folder and fill it again"):
        cache_of(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "flipped"])
def test_rows_that_do_not_match_their_hash(damage: str, tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    file, content = folder.path / "rows.bin", (folder.path / "rows.bin").read_bytes()
    file.unlink()
    if damage != "gone":
        changed = {"cut": content[:-3], "longer": content + bytes(8), "flipped": b"\1" + content[1:]}
        file.write_bytes(changed[damage])
    with pytest.raises(CacheCorrupt, match=r"rows\.bin does not match the manifest's rows_hash"):
        CacheFolder.open(folder.path)


# --------------------------------------------------------------------------- several at once


def at_once(ask: Any, count: int) -> None:
    """Do `ask(index)` in `count` processes at the same moment."""
    start = FORK.Barrier(count)

    def wait_and_ask(index: int) -> None:
        start.wait()
        ask(index)
        os._exit(0)

    processes = [FORK.Process(target=wait_and_ask, args=(index,)) for index in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def test_processes_that_create_at_once_make_one(tmp_path: Path) -> None:
    for attempt in range(5):
        root = tmp_path / str(attempt)
        at_once(lambda index, root=root: cache_of(root, views=1 + index), 4)
        folder = cache_of(root)
        assert sorted(path.name for path in root.iterdir()) == [f".{folder.path.name}.lock", folder.path.name]
        assert bytes_of(folder) == bytes_of(cache_of(tmp_path / "alone", views=4))


def test_threads_that_create_at_once_make_one(tmp_path: Path) -> None:
    found: list[Manifest] = []
    threads = [threading.Thread(target=lambda: found.append(cache_of(tmp_path).manifest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [manifest_of(TEN)] * 8


def test_what_a_killed_creator_left_is_swept(tmp_path: Path) -> None:
    name = manifest_of(TEN).folder_name
    debris = tmp_path / f".{name}.elsewhere.1234.tmp"
    debris.mkdir()
    (debris / "rows.bin").write_bytes(b"half")
    cache_of(tmp_path)
    assert not debris.exists()


def test_who_keeps_the_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with (
        locks.alone(path),
        pytest.raises(CacheError, match=r"x\.lock stays locked by another process: is one stopped"),
        locks.alone(path, wait_s=0.0),
    ):
        pass
    with locks.alone(path, wait_s=0.0):
        assert path.exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(CacheError, match=r"no file locks here \(No locks available\); mount it with flock"):
        cache_of(tmp_path)


# --------------------------------------------------------------------------- more views


def test_more_views_make_what_was_asked_at_once(tmp_path: Path) -> None:
    grown = fill(cache_of(tmp_path / "grown", views=1))
    for views in (2, 5, 3):
        grown = cache_of(tmp_path / "grown", views=views)
    assert grown.manifest.views == 5
    fill(grown, grown.missing().tolist())
    assert bytes_of(grown) == bytes_of(fill(cache_of(tmp_path / "at once", views=5)))


def test_growth_that_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment at which the manifest says more views than the files hold, and debris lies about."""
    fill(cache_of(tmp_path / "grown"))
    with monkeypatch.context() as patched:
        patched.setattr("kdscale.cache.making._lay_out", lambda *_: os._exit(9))
        killed = FORK.Process(target=lambda: cache_of(tmp_path / "grown", views=4))
        killed.start()
        killed.join()
    assert killed.exitcode == 9
    folder = cache_of(tmp_path / "grown", views=4)
    assert folder.missing().tolist() == [6, 7, 8, 9, 10, 11]
    (folder.path / ".manifest.json.elsewhere.1.tmp").write_text("half")
    folder = cache_of(tmp_path / "grown", views=5)
    fill(folder, folder.missing().tolist())
    assert bytes_of(folder) == bytes_of(fill(cache_of(tmp_path / "at once", views=5)))


def test_views_are_taken_note_of(tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    cache_of(tmp_path, views=3)
    assert folder.manifest.views == 2
    folder.reload()
    assert folder.manifest.views == 3


def test_a_cache_that_was_replaced_is_stale(tmp_path: Path) -> None:
    folder = cache_of(tmp_path)
    other = replace(folder.manifest, identity={"teacher": "another"})
    (folder.path / "manifest.json").write_text(json.dumps(other.document()))
    with pytest.raises(CacheStale, match='teacher: expected nothing, found "another"'):
        folder.reload()


# --------------------------------------------------------------------------- disks


def test_a_disk_that_is_too_small(disk: Path) -> None:
    with pytest.raises(
        CacheError, match=r"the disk is full .*GB are needed.*Nothing was left behind. Free some"
    ) as caught:
        cache_of(disk, views=100_000)
    assert atomic.is_disk_full(caught.value)
    assert [path.name for path in disk.iterdir()] == [f".{manifest_of(TEN).folder_name}.lock"]


def test_a_disk_that_fills_up_while_a_cache_is_made(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.atomic.demand_space", lambda *_: None)
    with pytest.raises(CacheError, match=r"the disk is full .*Nothing was left behind") as caught:
        cache_of(disk, np.arange(1_000_000))
    assert atomic.is_disk_full(caught.value)
    assert [path.name for path in disk.iterdir() if path.is_dir()] == []


def test_growth_on_a_disk_that_is_too_small(disk: Path) -> None:
    folder = fill(cache_of(disk))
    before = bytes_of(folder)
    with pytest.raises(CacheError, match="the disk is full"):
        cache_of(disk, views=100_000)
    assert bytes_of(folder) == before


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"the cache cannot be written \(.*file"):
        cache_of(tmp_path / "file")


def test_a_disk_that_may_only_be_read(disk: Path) -> None:
    fill(cache_of(disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    folder = cache_of(disk)
    assert not folder.writable
    assert len(folder.missing()) == 0
    with pytest.raises(
        CacheError, match=rf"{folder.path} cannot be written \(Read-only file system\): .*another --runs"
    ):
        cache_of(disk, views=3)
