"""Conversion: once, whole or not at all, the same content for either loader, and clear words when it cannot be."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from kdscale.config.schema import DataConfig
from kdscale.data.loader import ffcv_problem
from kdscale.data.store import Kind, Store, write_store
from kdscale.errors import DataError
from tests.unit.data.places import Pictures, PictureSource, made_up

FORK = multiprocessing.get_context("fork")
RAW, JPEG = DataConfig(), DataConfig(store="jpeg")
ffcv = pytest.param("ffcv", marks=pytest.mark.skipif(bool(ffcv_problem()), reason=f"FFCV: {ffcv_problem()}"))
KINDS = ["torch", ffcv]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [RAW, JPEG], ids=["raw", "jpeg"])
def test_a_store_knows_its_data(kind: Kind, data: DataConfig, tmp_path: Path) -> None:
    pictures = made_up()
    store = write_store(pictures, data, tmp_path / "stage" / "store", kind)
    assert (store.kind, store.side, store.encoding) == (kind, 12, data.store)
    assert store.info == pictures.info
    for split in ("train", "test"):
        np.testing.assert_array_equal(store.labels(split), pictures.splits[split][1])
    assert store.manifest["fingerprint"] == "pictures"


@pytest.mark.parametrize("data", [RAW, JPEG], ids=["raw", "jpeg"])
@pytest.mark.skipif(bool(ffcv_problem()), reason=f"FFCV: {ffcv_problem()}")
def test_the_content_is_the_same_for_either_loader(data: DataConfig, tmp_path: Path) -> None:
    stores = [write_store(made_up(), data, tmp_path / kind, kind) for kind in ("ffcv", "torch")]
    assert stores[0].content_hash == stores[1].content_hash


def test_the_content_hash_sees_every_pixel_and_label(tmp_path: Path) -> None:
    hashes = {write_store(made_up(), RAW, tmp_path / "same", "torch").content_hash}
    for name, split, change in [("a", "train", 0), ("b", "test", 0), ("c", "train", 1), ("d", "test", 1)]:
        pictures = made_up()
        pictures.splits[split][change].flat[-1] ^= 1
        hashes.add(write_store(pictures, RAW, tmp_path / name, "torch").content_hash)
    assert len(hashes) == 5


@pytest.mark.skipif(bool(ffcv_problem()), reason=f"FFCV: {ffcv_problem()}")
def test_a_beton_is_byte_for_byte_that_of_ffcvs_own_writer(tmp_path: Path) -> None:
    """3.6 MB of images, so that there are several pages."""
    pictures = made_up(train=300, size=64)
    store = write_store(pictures, RAW, tmp_path / "store", "ffcv")
    script = f"""
import numpy as np
from kdscale.data.ffcv_fence import open_ffcv
open_ffcv()
from ffcv.writer import DatasetWriter
from ffcv.fields import IntField, NDArrayField
from tests.unit.data.places import made_up
fields = {{"image": NDArrayField(np.dtype("u1"), (64, 64, 3)), "label": IntField()}}
writer = DatasetWriter({str(tmp_path / "own.beton")!r}, fields, page_size=1 << 21, num_workers=1)
writer.from_indexed_dataset(made_up(train=300, size=64).open("train"))
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=Path.cwd())
    assert (store.path / "train.beton").read_bytes() == (tmp_path / "own.beton").read_bytes()


# --------------------------------------------------------------------------- once


class Counting(Pictures):
    """Notes in a file each time it is opened, so that other processes' conversions count too; takes its time."""

    def __init__(self, notes: Path, pause_s: float) -> None:
        pictures = made_up()
        super().__init__(pictures.splits, 5)
        self.notes, self.pause_s = notes, pause_s

    def open(self, split: str) -> PictureSource:
        with self.notes.open("a") as file:
            file.write(f"{split}\n")
        time.sleep(self.pause_s)
        return super().open(split)


def test_a_store_is_not_converted_again(tmp_path: Path) -> None:
    for _ in range(2):
        write_store(Counting(tmp_path / "notes", 0), RAW, tmp_path / "store", "torch")
    assert (tmp_path / "notes").read_text() == "train\ntest\n"


def convert_in_process(folder: Path, pause_s: float) -> None:
    write_store(Counting(folder / "notes", pause_s), RAW, folder / "store", "torch")


def test_two_processes_at_once_convert_once(tmp_path: Path) -> None:
    processes = [FORK.Process(target=convert_in_process, args=(tmp_path, 0.3)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "notes").read_text() == "train\ntest\n"
    assert Store.open(tmp_path / "store").info.train_rows == 100


def test_a_file_system_without_locks_is_converted_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    somebodys = tmp_path / ".store.elsewhere.77.tmp"
    somebodys.mkdir()
    assert write_store(made_up(), RAW, tmp_path / "store", "torch").info.train_rows == 100
    assert somebodys.exists(), "it may be at work: without a lock nobody knows"


def test_a_killed_conversion_leaves_no_store_and_the_next_one_clears_up(tmp_path: Path) -> None:
    process = FORK.Process(target=convert_in_process, args=(tmp_path, 30))
    process.start()
    while not (tmp_path / "notes").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(DataError, match="holds no converted data: its conversion did not finish"):
        Store.open(tmp_path / "store")
    assert list(tmp_path.glob(".store.*.tmp"))

    write_store(made_up(), RAW, tmp_path / "store", "torch")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.lock", "notes", "store"]


# --------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_half_way_leaves_nothing(kind: Kind, tmp_path: Path) -> None:
    threads = threading.active_count()
    pictures = made_up()
    pictures.splits["test"][1][20] = 77
    with pytest.raises(DataError, match="test row 20 has label 77, expected 0 to 4"):
        write_store(pictures, RAW, tmp_path / "store", kind)
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]
    assert threading.active_count() == threads


def test_whoever_watches_can_end_the_conversion(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def progress(done: int, total: int) -> None:
        assert (done, total) == (500, 630)
        raise Enough

    with pytest.raises(Enough):
        write_store(made_up(train=600), RAW, tmp_path / "store", "torch", progress)
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_store(made_up(train=1200), RAW, tmp_path / "store", "torch", lambda done, total: told.append((done, total)))
    assert told == [(500, 1230), (1000, 1230), (1230, 1230)]


def test_a_set_of_another_length_than_described_is_refused(tmp_path: Path) -> None:
    pictures = made_up()
    pictures.splits["train"] = (pictures.splits["train"][0][:90], pictures.splits["train"][1][:90])
    with pytest.raises(DataError, match="train set has 90 samples, its description says 100"):
        write_store(pictures, RAW, tmp_path / "store", "torch")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system of its own can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noticed", ["before", "while writing"])
def test_a_full_disk_is_a_data_error_and_leaves_nothing(
    kind: Kind, noticed: str, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if noticed == "while writing":
        monkeypatch.setattr("kdscale.atomic.demand_space", lambda folder, needed: None)
    with pytest.raises(DataError, match=r"the disk is full .*Free some space, or choose another place"):
        write_store(made_up(train=500, size=64), RAW, tiny_disk / "store", kind)
    assert [path.name for path in tiny_disk.iterdir()] == [".store.lock"]


@pytest.mark.parametrize("name", ["train.images.npy", "test.labels.npy"])
@pytest.mark.parametrize("how", ["cut off", "gone"])
def test_a_damaged_store_is_not_opened(name: str, how: str, tmp_path: Path) -> None:
    write_store(made_up(), RAW, tmp_path / "store", "torch")
    path = tmp_path / "store" / name
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=rf"{name} is damaged: .* remove the folder and convert again"):
        Store.open(tmp_path / "store")


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    store = write_store(made_up(), RAW, tmp_path / "store", "torch")
    (store.path / "manifest.json").write_text(json.dumps(store.manifest | {"schema": 99}))
    with pytest.raises(DataError, match="schema 99, this kdscale reads 1"):
        Store.open(tmp_path / "store")
