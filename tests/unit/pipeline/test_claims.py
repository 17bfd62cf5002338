"""Claims among real processes that race, die, linger as zombies and lose what they held."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import StageError
from kdscale.pipeline import claims
from kdscale.pipeline.artifacts import Claim, Root, StageFolder

ROOT = Path(__file__).resolve().parents[3]
DIGEST = "5f" * 32

CLAIM_EACH = """
import sys
from pathlib import Path
from kdscale.errors import StageError
from kdscale.pipeline.artifacts import StageFolder
print("ready", flush=True)
sys.stdin.readline()
won = []
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        StageFolder(path).claim({"world": 1})
        won.append(path.name)
    except StageError:
        pass
print(*won, flush=True)
sys.stdin.readline()
"""

CLAIM_UNTIL_GOT = """
import sys, time
from pathlib import Path
from kdscale.errors import StageError
from kdscale.pipeline.artifacts import StageFolder
while True:
    try:
        claim = StageFolder(Path(sys.argv[1])).claim({"world": 1})
        break
    except StageError:
        time.sleep(0.005)
print("got", flush=True)
sys.stdin.readline()
claim.release()
print("released", flush=True)
"""

FORK_UNDER_LOCK = """
import os, sys, time
from pathlib import Path
from kdscale.pipeline.claims import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if not child:
        time.sleep(60)
print("forked", flush=True)
sys.stdin.readline()
os.kill(child, 9)
"""


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return Root(tmp_path).create_stage("student", DIGEST)


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def begin(code: str, argument: Path) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(argument)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT,
        )  # fmt: skip
        started.append(child)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def write_claim(stage: StageFolder, **changes: Any) -> None:
    """A claim as some other process would have written it."""
    now = time.time()
    holder = {"schema": 1, **claims.this(), "attempt": 1, "since": now, "heartbeat": now, **changes}
    (stage.path / "claim.json").write_text(json.dumps(holder))


class TestWhoLives:
    def test_this_process_does(self, stage: StageFolder) -> None:
        write_claim(stage)
        assert stage.claimant() is not None

    def test_a_pid_that_is_somebody_elses_by_now_is_dead(self, stage: StageFolder) -> None:
        write_claim(stage, started=claims.this()["started"] - 1)
        assert stage.claimant() is None

    def test_nothing_survives_a_reboot(self, stage: StageFolder) -> None:
        write_claim(stage, boot="another")
        assert stage.claimant() is None

    @pytest.mark.parametrize(("age_s", "lives"), [(60, True), (121, False)])
    @pytest.mark.parametrize("place", [{"host": "node7", "boot": "another"}, {"namespace": "pid:[1]"}])
    def test_where_pids_cannot_be_seen_the_heartbeat_decides(
        self, stage: StageFolder, place: dict[str, str], age_s: float, lives: bool
    ) -> None:
        write_claim(stage, **place, pid=2**22 + 1, heartbeat=time.time() - age_s)
        assert (stage.claimant() is not None) is lives

    def test_a_requeued_slurm_job_outlives_its_earlier_run(
        self, stage: StageFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        write_claim(stage, host="node7", job="77", restart=0)
        assert stage.claimant() is not None
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert stage.claimant() is None

    def test_a_zombie_is_dead(self) -> None:
        child = subprocess.Popen(["true"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has buried it
        assert Path(f"/proc/{child.pid}/stat").exists()
        assert claims.start_time(child.pid) is None
        child.wait()

    def test_without_proc_psutil_answers(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(claims, "PROC", tmp_path / "absent")
        child = subprocess.Popen(["sleep", "60"])
        started = claims.start_time(child.pid)
        assert started is not None
        assert claims.start_time(child.pid) == started
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert claims.start_time(child.pid) is None
        child.wait()

    def test_a_damaged_claim_is_said(self, stage: StageFolder) -> None:
        (stage.path / "claim.json").write_text("{")
        with pytest.raises(StageError, match="damaged"):
            stage.claimant()


class TestRaces:
    def test_of_eight_processes_one_gets_each_stage_free_or_from_a_dead_holder(
        self, tmp_path: Path, start: Any
    ) -> None:
        root = Root(tmp_path)
        folders = [root.create_stage("student", f"{i:012x}" + "0" * 52) for i in range(60)]
        for folder in folders[:40]:
            write_claim(folder, started=1)
        racers = [start(CLAIM_EACH, tmp_path / "stages") for _ in range(8)]
        assert [hear(r) for r in racers] == ["ready"] * 8
        for racer in racers:
            tell(racer)
        won = {racer.pid: hear(racer).split() for racer in racers}
        assert sorted(name for names in won.values() for name in names) == sorted(f.path.name for f in folders)
        for folder in folders:
            holder = folder.claimant()
            assert holder is not None
            assert folder.path.name in won[holder["pid"]]
            assert len(folder.state()["attempts"]) == 1

    def test_a_killed_holder_is_followed_by_exactly_one(self, stage: StageFolder, start: Any) -> None:
        waiting = [start(CLAIM_UNTIL_GOT, stage.path) for _ in range(8)]
        for attempt in range(1, 9):
            holder = wait_for_holder(stage, attempt)
            child = next(c for c in waiting if c.pid == holder["pid"])
            assert hear(child) == "got"
            assert len(stage.state()["attempts"]) == attempt
            waiting.remove(child)
            child.send_signal(signal.SIGKILL)  # and not buried: a zombie must not keep it either
        attempts = stage.state()["attempts"]
        assert [a["outcome"] for a in attempts] == ["lost"] * 7 + [None]
        assert all(a["ended"] >= a["started"] for a in attempts[:-1])

    def test_a_process_that_lost_its_claim_can_write_nothing(self, stage: StageFolder, start: Any) -> None:
        claim = stage.claim({"world": 1})
        claim.heartbeat()
        write_claim(stage, host="node7", attempt=2)  # another machine thought this one dead
        assert not claim.is_mine()
        for write in (lambda: stage.write_state(state="done"), lambda: stage.note_attempt(outcome="done")):
            with pytest.raises(StageError, match=r"no longer holds.*node7"):
                write()
        before = (stage.path / "claim.json").read_bytes()
        claim.release()
        assert (stage.path / "claim.json").read_bytes() == before
        assert stage.state()["state"] == "waiting"

    def test_release_lets_the_next_one_in(self, stage: StageFolder, start: Any) -> None:
        child = start(CLAIM_UNTIL_GOT, stage.path)
        assert hear(child) == "got"
        with pytest.raises(StageError, match=f"process {child.pid}"):
            stage.claim({"world": 1})
        tell(child)
        assert hear(child) == "released"
        stage.claim({"world": 2}).release()
        first, second = stage.state()["attempts"]
        assert (first["world"], second["world"], second["attempt"]) == (1, 2, 2)
        assert first["ended"] <= second["started"]
        assert stage.last_claim() is None


def wait_for_holder(stage: StageFolder, attempt: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        holder = stage.claimant()
        if holder and holder["attempt"] == attempt:
            return holder
        time.sleep(0.005)
    raise AssertionError("nobody took it over")


class TestHeartbeat:
    @pytest.fixture(autouse=True)
    def _fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "BEAT_S", 0.01)

    def test_goes_on_while_the_loop_shows_progress(self, stage: StageFolder) -> None:
        claim = stage.claim({})
        beats = seen_beats(stage, claim, 0.5)
        assert len(beats) > 2
        assert claim.is_mine()
        claim.release()

    def test_stops_for_a_loop_that_hangs(self, stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "SILENT_S", 0.0)
        claim = stage.claim({})
        assert len(seen_beats(stage, claim, 0.2, pulse=False)) == 1
        claim.release()

    def test_never_writes_over_who_took_the_stage(self, stage: StageFolder) -> None:
        claim = stage.claim({})
        write_claim(stage, host="node7", attempt=2)
        taken = (stage.path / "claim.json").read_bytes()
        seen_beats(stage, claim, 0.1)
        assert (stage.path / "claim.json").read_bytes() == taken


def seen_beats(stage: StageFolder, claim: Claim, for_s: float, *, pulse: bool = True) -> set[float]:
    beats = set()
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        if pulse:
            claim.heartbeat()
        beats.add(json.loads((stage.path / "claim.json").read_text())["heartbeat"])
        time.sleep(0.005)
    return beats


class TestLocks:
    def test_one_that_is_kept_is_said_after_a_while(self, tmp_path: Path) -> None:
        with (
            claims.locked(tmp_path / "x.lock"),
            pytest.raises(StageError, match="locked by another process"),
            claims.locked(tmp_path / "x.lock", timeout_s=0.02),
        ):
            pass

    def test_a_child_forked_meanwhile_does_not_keep_it(self, tmp_path: Path, start: Any) -> None:
        child = start(FORK_UNDER_LOCK, tmp_path / "x.lock")
        assert hear(child) == "forked"
        with claims.locked(tmp_path / "x.lock", timeout_s=1.0):
            pass
        tell(child)
        child.wait(10)
