"""What comes back, when and where not: by what ranks wrote of their end, and by what happened before."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest

from kdscale.jobs.causes import blamed
from kdscale.jobs.retries import WAITS_S, excluded_nodes, judge, not_before
from kdscale.pipeline.artifacts import Root, StageFolder


def cause(kind: str, message: str, number: int | None = None, *, host: str = "n1", own: bool = False) -> dict[str, Any]:
    full = number in (errno.ENOSPC, errno.EDQUOT)
    return {"host": host, "kind": kind, "message": message, "errno": number, "disk_full": full, "own": own}


NAN = cause("NonFiniteLoss", "the loss is nan", own=True)
STALE = cause("OSError", "Stale file handle", errno.ESTALE)
FULL = cause("OSError", "No space left on device", errno.ENOSPC)
ECHO = cause("RuntimeError", "[gloo/transport/tcp/pair.cc] Connection closed by peer")
HUNG = cause("RankHung", "rank 1 hangs at step 7", own=True, host="n2")
PORT = cause("DistNetworkError", "The server socket has failed to listen: port 29500", errno.EADDRINUSE)


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return Root(tmp_path).create_stage("teacher", "ab" * 16)


@pytest.mark.parametrize(
    ("causes", "expected"),
    [
        ([NAN, ECHO], "own"),
        ([ECHO, None, STALE, NAN], "own"),
        ([STALE, ECHO], "passing"),
        ([FULL, STALE], "disk"),
        ([HUNG, HUNG], "lost"),
        ([ECHO, ECHO], "passing"),
        ([PORT], "passing"),
        ([cause("SafetensorError", "Error while writing: (os error 5)")], "passing"),
        ([cause("FileNotFoundError", "no such file", errno.ENOENT)], "own"),
        ([ECHO, None], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_whose_word_counts(causes: list[dict[str, Any] | None], expected: str | None) -> None:
    found = blamed(causes)
    assert (found["class"] if found else None) == expected


def test_an_error_of_its_own_is_final(folder: StageFolder) -> None:
    assert judge(folder, [ECHO, NAN], how="").state == "failed"
    assert not (folder.path / "retries.json").exists()


def test_passing_errors_wait_longer_and_longer_and_then_for_the_user(folder: StageFolder) -> None:
    verdicts = [judge(folder, [STALE], how="") for _ in range(4)]
    assert [v.state for v in verdicts] == ["interrupted"] * 3 + ["paused"]
    assert [v.wait_s for v in verdicts] == [*WAITS_S, 0.0]
    assert "again in 5:00" in verdicts[1].reason


def test_a_step_in_between_begins_the_count_anew(folder: StageFolder) -> None:
    for step in range(5):
        folder.write_state(step=step)
        assert judge(folder, [STALE], how="").wait_s == WAITS_S[0]
        assert judge(folder, [None], how="killed").state == "interrupted"
    assert time.time() < not_before(folder) + 1


def test_losses_come_back_at_once_and_pause_after_three(folder: StageFolder) -> None:
    verdicts = [judge(folder, [None], how="job 4: node fail") for _ in range(3)]
    assert [(v.state, v.wait_s) for v in verdicts] == [("interrupted", 0), ("interrupted", 0), ("paused", 0)]
    assert verdicts[2].reason == "job 4: node fail, 3 times in a row without a step"


def test_a_node_is_left_out_after_two_failures_even_with_steps_in_between(folder: StageFolder) -> None:
    judge(folder, [None, HUNG], how="")
    assert excluded_nodes(folder) == []
    folder.write_state(step=100)
    judge(folder, [None, HUNG], how="")
    assert excluded_nodes(folder) == ["n2"]


def test_a_full_disk_says_nothing_of_a_node_and_pauses_where_somebody_is_there(folder: StageFolder) -> None:
    for _ in range(2):
        assert judge(folder, [FULL], how="", waits_s=[60.0] * 3).state == "interrupted"
    assert excluded_nodes(folder) == []
    here = judge(folder, [FULL], how="", waits_s=())
    assert here.state == "paused"
    assert "free some space" in here.reason


def test_half_a_file_is_begun_anew(folder: StageFolder) -> None:
    (folder.path / "retries.json").write_text('{"step": ')
    assert judge(folder, [STALE], how="").wait_s == WAITS_S[0]
