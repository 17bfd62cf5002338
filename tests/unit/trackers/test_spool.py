from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.api import Tracker
from kdscale.trackers.spool import Line, Spool, read_lines


def entries(path: Path) -> list[Line]:
    return list(read_lines(path.read_bytes()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stage" / "metrics.jsonl"


def test_a_line_holds_step_epoch_time_and_values(path: Path) -> None:
    spool = Spool(path, None, steps_per_epoch=40)
    assert isinstance(spool, Tracker)
    before = time.time()
    spool.log(50, {"train/loss": 2.5, "train/lr": np.float32(0.5), "val/top1": torch.tensor(0.25)})
    line = json.loads(path.read_text())
    assert before - 0.001 <= line.pop("time") <= time.time() + 0.001
    assert line == {"step": 50, "epoch": 1.25, "metrics": {"train/loss": 2.5, "train/lr": 0.5, "val/top1": 0.25}}


def test_lines_are_there_before_any_flush(path: Path) -> None:
    spool = Spool(path)
    for step in (1, 2, 3):
        spool.log(step, {"a": step})
        assert [line.step for line in entries(path)] == list(range(1, step + 1))


def test_values_that_json_cannot_hold_come_back(path: Path) -> None:
    Spool(path).log(1, {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0})
    raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert raw["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    (line,) = entries(path)
    np.testing.assert_equal(line.metrics, {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0})


def test_a_resume_drops_what_comes_again_and_nothing_else(path: Path) -> None:
    spool = Spool(path)
    spool.log(50, {"a": 1.0})
    saved = spool.flush()
    assert saved == path.stat().st_size
    spool.log(100, {"a": 2.0})
    spool.close()
    resumed = Spool(path, saved)
    resumed.log(100, {"a": 3.0})
    resumed.close()
    assert [(line.step, line.metrics["a"]) for line in entries(path)] == [(50, 1.0), (100, 3.0)]


def test_a_start_without_checkpoint_begins_empty(path: Path) -> None:
    Spool(path).log(1, {"a": 1.0})
    assert Spool(path, 0).flush() == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize("resume_at", [None, 10_000])
def test_a_torn_last_line_is_dropped(path: Path, resume_at: int | None, caplog: pytest.LogCaptureFixture) -> None:
    Spool(path).log(1, {"a": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    spool = Spool(path, resume_at)
    assert path.read_bytes() == whole
    spool.log(2, {"a": 2.0})
    assert [line.step for line in entries(path)] == [1, 2]
    assert ("metrics are missing" in caplog.text) == (resume_at is not None)


def test_a_torn_line_longer_than_one_look_is_dropped(path: Path) -> None:
    Spool(path).log(1, {"a": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    assert Spool(path).flush() == len(whole)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_kills_anywhere_lose_and_double_nothing(
    tmp_path_factory: pytest.TempPathFactory, plan: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spool") / "metrics.jsonl"
    step, saved = 0, (0, 0)
    for lines in plan:  # each attempt: resume, log a few lines, perhaps save, die with the file cut somewhere behind
        step = saved[1]
        spool = Spool(path, saved[0])
        for _ in range(lines):
            step += 1
            spool.log(step, {"a": float(step)})
            if data.draw(st.booleans()):
                saved = (spool.flush(), step)
        os.close(spool._file)
        kept = data.draw(st.floats(0, 1))
        os.truncate(path, saved[0] + round(kept * (path.stat().st_size - saved[0])))
    Spool(path, saved[0]).close()
    assert [line.step for line in entries(path)] == list(range(1, saved[1] + 1))


FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path
from kdscale.trackers.spool import Spool
logging.basicConfig(format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]))
spool.log(1, {"a": 1.0})
length = spool.flush()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (length + 20, hard))  # a write cut short, then refused
spool.log(2, {"a": 2.0}); spool.log(3, {"a": 3.0})
print(spool.flush(), length)
if "more" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    spool.log(4, {"a": 4.0})
spool.close()
"""


@pytest.mark.parametrize("room_comes_back", [True, False])
def test_a_full_disk_keeps_the_tail_in_memory_and_says_so_once(path: Path, room_comes_back: bool) -> None:
    """The file-size limit of a process answers a write exactly as a full disk does: short, then with an error."""
    more = ["more"] if room_comes_back else []
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), *more], capture_output=True, text=True, check=True, timeout=60
    )
    length, first = map(int, done.stdout.split())
    assert abs(length - first * 3) <= 6, "what the disk still refuses counts: a time has 1 to 3 decimals"
    assert done.stderr.count("stay in memory") == 1
    assert ("none is missing" in done.stderr) == room_comes_back
    assert ("are lost" in done.stderr) == (not room_comes_back)
    assert [line.step for line in entries(path)] == ([1, 2, 3, 4] if room_comes_back else [1])
    assert room_comes_back or path.stat().st_size == first + 20


def test_a_disk_that_refuses_everything_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link = tmp_path / "metrics.jsonl"
    link.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        spool = Spool(link)
        for step in range(5):
            spool.log(step, {"a": 1.0})
        spool.close()
        spool.close()
    assert caplog.text.count("stay in memory") == 1


def test_damaged_lines_are_left_out() -> None:
    good = b'{"step":1,"epoch":0.5,"time":2.0,"metrics":{"a":1.0}}'
    content = b"\n".join([good, b"\0\0\0", b"[]", b'{"step":1}', good[:-3], b"", good])
    assert [line.step for line in read_lines(content)] == [1, 1]


def test_a_line_never_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, waits.append)
    spool = Spool(path, None, steps_per_epoch=400)
    metrics = {f"train/term/{i}": 0.1 * i for i in range(12)}
    for step in range(500):
        spool.log(step, metrics)
    assert waits == []
    spool.flush()
    assert len(waits) > 0
