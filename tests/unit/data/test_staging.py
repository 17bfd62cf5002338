"""A node's own copy of the data: made once by whoever comes first, whole, checked, and never a reason to fail."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kdscale.config.schema import DataConfig
from kdscale.data import staging
from kdscale.data.staging import open_staged
from kdscale.data.store import write_store
from kdscale.errors import DataError
from tests.unit.data.places import made_up

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_store(made_up(), DataConfig(), tmp_path / "shared" / "store", "torch").path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copies(node: Path) -> list[Path]:
    return [path for path in node.glob("kdscale-*/*") if path.is_dir()]


def test_the_copy_has_the_same_bytes(source: Path, tmp_path: Path) -> None:
    store = open_staged(source, str(tmp_path / "node"))
    assert store.path.is_relative_to(tmp_path / "node")
    assert contents(store.path) == contents(source)
    assert open_staged(source, None).path == source


def test_who_copies_and_who_waits_gives_signs_of_life(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a rank that copies for half an hour would be taken for one that hangs."""
    signs: list[str] = []
    monkeypatch.setattr(staging, "SIGN_S", 0.02)
    monkeypatch.setattr(staging, "_CHUNK", 1 << 10)
    store = open_staged(source, str(tmp_path / "node"), lambda: signs.append("copies"))
    assert len(signs) > sum(store.manifest["files"].values()) // (1 << 10)
    often, waited = threading.Event(), iter(range(3))
    with FileLock(store.path.with_name(f".{store.path.name}.lock")):
        sign = lambda: often.set() if next(waited, None) is None else None  # noqa: E731
        other = threading.Thread(target=open_staged, args=(source, str(tmp_path / "node"), sign))
        other.start()
        assert often.wait(10)
    other.join(10)
    assert not other.is_alive()


def test_of_a_node_s_processes_one_copies(source: Path, tmp_path: Path) -> None:
    def share(queue: Any) -> None:
        begun = time.monotonic()
        store = open_staged(source, str(tmp_path / "node"))
        queue.put((str(store.path), (store.path / "manifest.json").stat().st_ino, time.monotonic() - begun))

    queue = FORK.SimpleQueue()
    everyone = [FORK.Process(target=share, args=(queue,)) for _ in range(4)]
    for process in everyone:
        process.start()
    answers = {queue.get()[:2] for _ in everyone}
    for process in everyone:
        process.join()
    assert len(answers) == 1
    assert copies(tmp_path / "node") == [Path(next(iter(answers))[0])]


def test_a_copy_that_was_killed_is_cleared_away_and_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(path: Path, target: Path, alive: Callable[[], None]) -> str:
        target.write_bytes(b"half")
        time.sleep(60)
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_copied", hang)
        process = FORK.Process(target=open_staged, args=(source, str(tmp_path / "node")))
        process.start()
        while not list((tmp_path / "node").glob("kdscale-*/.*.tmp/*")):
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    store = open_staged(source, str(tmp_path / "node"))
    assert contents(store.path) == contents(source)
    assert not list((tmp_path / "node").glob("kdscale-*/.*.tmp"))


def test_a_damaged_copy_is_made_again(source: Path, tmp_path: Path) -> None:
    copy = open_staged(source, str(tmp_path / "node")).path
    (copy / "test.images.npy").write_bytes(b"cut short")
    assert contents(open_staged(source, str(tmp_path / "node")).path) == contents(source)


@pytest.mark.parametrize("why", ["no room", "other bytes", "no folder"])
def test_where_no_copy_can_be_made_the_data_is_read_where_it_lies(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    node = tmp_path / "node"
    if why == "no room":
        usage = type("usage", (), {"free": 10})
        monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: usage)
    elif why == "other bytes":
        monkeypatch.setattr(staging, "_on_disk", lambda path, alive: "another hash")
    else:
        node.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert open_staged(source, str(node)).path == source
    assert f"data.stage_to: {node} cannot hold the data" in caplog.text
    assert not copies(node)


def test_a_variable_that_a_job_lacks_is_an_error_and_elsewhere_is_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert open_staged(source, "$SLURM_TMPDIR/data").path == source
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(DataError, match=r"data.stage_to: \$SLURM_TMPDIR is not set"):
        open_staged(source, "${SLURM_TMPDIR}/data")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "own"))
    assert open_staged(source, "$SLURM_TMPDIR/data").path.is_relative_to(tmp_path / "own" / "data")


def test_the_key_wants_a_folder_of_the_node() -> None:
    with pytest.raises(ValueError, match="absolute path"):
        DataConfig(stage_to="scratch")


def test_a_damaged_source_is_told_as_ever(source: Path, tmp_path: Path) -> None:
    (source / "test.images.npy").write_bytes(b"cut short")
    with pytest.raises(DataError, match="damaged"):
        open_staged(source, str(tmp_path / "node"))
