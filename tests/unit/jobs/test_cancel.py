"""Cancelling reaches what runs here, what runs elsewhere, and what has not begun; not what others need."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import ConfigError, StageError
from kdscale.jobs.cancel import cancel
from kdscale.pipeline import claims
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.fake_sweeps import Fake, finish

ROOT = Path(__file__).resolve().parents[3]

WORKER = """
import signal, sys, threading
from pathlib import Path
from kdscale.pipeline.artifacts import StageFolder
folder, asked, count = StageFolder(Path(sys.argv[1])), threading.Event(), []
signal.signal(signal.SIGTERM, lambda *_: (count.append(1), asked.set()))
claim = folder.claim({})
folder.write_state(state="running", step=120)
print("ready", flush=True)
while not asked.wait(0.05):
    pass
assert folder.cancel_request()
folder.write_state(state="cancelled", step=124, reason="signals: %d" % len(count))
claim.release()
"""

LAUNCHER = """
import signal, sys, threading
from pathlib import Path
from kdscale.pipeline.artifacts import SweepFolder
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
with SweepFolder(Path(sys.argv[1])).launching():
    print("ready", flush=True)
    while not asked.wait(0.05):
        pass
print("told", flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    fake = Fake(Root(tmp_path), axes={"seed": ["0", "1"]})
    finish(fake.folder("data"), None)
    return fake


@pytest.fixture
def start() -> Iterator[Any]:
    children: list[subprocess.Popen[str]] = []

    def begin(code: str, path: Path) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def runs_elsewhere(stage: StageFolder) -> None:
    now = time.time()
    stage.write_state(state="running", step=7)
    holder = {"schema": 1, **claims.this(), "host": "node7", "attempt": 1, "since": now, "heartbeat": now}
    (stage.path / "claim.json").write_text(json.dumps(holder))


class TestAStage:
    def test_that_runs_here_saves_and_stops(self, fake: Fake, start: Any) -> None:
        teacher = fake.folder("teacher")
        worker = start(WORKER, teacher.path)
        lines = list(cancel("birds:teacher", fake.root, "too slow", 20.0))
        assert lines == [
            f"birds:teacher is asked to stop; its process ({worker.pid}) is told: a checkpoint comes first",
            "birds:teacher stopped at step 124",
        ]
        assert (teacher.state()["state"], teacher.state()["reason"]) == ("cancelled", "signals: 1")
        assert (teacher.cancel_request() or {})["reason"] == "too slow"

    def test_that_runs_elsewhere_is_left_a_wish(self, fake: Fake) -> None:
        teacher = fake.folder("teacher")
        runs_elsewhere(teacher)
        first, last = cancel("birds:teacher", fake.root, "x", 0.0)
        assert "its process on node7 sees it" in first
        assert "has not stopped yet" in last
        assert teacher.cancel_request()
        assert teacher.state()["state"] == "running"

    def test_that_waits_is_cancelled_at_once(self, fake: Fake) -> None:
        student = fake.folder("student", "0")
        assert list(cancel("birds:student[s0]", fake.root, "x", 0.0)) == [
            "birds:student[s0] cancelled (it was waiting)"
        ]
        assert student.state()["state"] == "cancelled"
        assert student.cancel_request()

    def test_that_rests_cannot_be(self, fake: Fake) -> None:
        with pytest.raises(StageError, match="birds:data is done: there is nothing to cancel"):
            list(cancel("birds:data", fake.root, "x", 0.0))


class TestSomeOfASweep:
    def test_by_name_all_that_are_called_so(self, fake: Fake) -> None:
        assert list(cancel("birds", fake.root, "x", 0.0, ["student"])) == [
            "birds:student[s0] cancelled (it was waiting)", "birds:student[s1] cancelled (it was waiting)",
        ]  # fmt: skip
        assert fake.folder("teacher").state()["state"] == "waiting"
        with pytest.raises(StageError, match="birds student: nothing to cancel, all 2 of them rest"):
            list(cancel("birds", fake.root, "x", 0.0, ["student"]))

    def test_by_values_those_that_have_them_and_many_in_a_line(self, tmp_path: Path) -> None:
        many = Fake(Root(tmp_path / "many"), axes={"method": ["kd", "crd"], "seed": [str(i) for i in range(12)]})
        assert list(cancel("birds", many.root, "x", 0.0, ["student[crd]", "teacher"])) == [
            "birds:teacher cancelled (it was waiting)", "12 x student cancelled (it was waiting)",
        ]  # fmt: skip
        assert many.folder("student", "kd", "3").state()["state"] == "waiting"

    def test_what_is_called_otherwise_is_refused(self, fake: Fake) -> None:
        with pytest.raises(ConfigError, match="did you mean student"):
            list(cancel("birds", fake.root, "x", 0.0, ["studnet"]))
        with pytest.raises(ConfigError, match="is a stage already"):
            list(cancel("birds:teacher", fake.root, "x", 0.0, ["student"]))

    def test_jobs_that_wait_for_it_are_blocked_also_where_the_queue_cannot_be_asked(
        self, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        (fake.root.path / "jobs").mkdir()
        for job, folder in enumerate([fake.folder("teacher"), fake.folder("student", "0")]):
            task = {"job": str(job), "digest": folder.digest}
            note = {"job": str(job), "submitted": float(job), "tasks": [task]}
            (fake.root.path / "jobs" / f"{job}.json").write_text(json.dumps(note))
            folder.write_state(state="queued", reason=f"job {job}")
        lines = list(cancel("birds", fake.root, "x", 0.0, ["teacher"]))
        assert lines[:2] == [
            "birds:teacher cancelled (it was queued)", "birds:student[s0] is blocked: teacher was cancelled",
        ]  # fmt: skip
        assert "squeue is not here" in lines[2]
        assert fake.folder("student", "0").state()["reason"] == "teacher was cancelled"
        assert fake.folder("student", "1").state()["state"] == "waiting"  # no job: its launcher's to say


class TestASweep:
    def test_all_that_is_open_and_the_launcher(self, fake: Fake, start: Any) -> None:
        launcher = start(LAUNCHER, fake.sweep.path)
        worker = start(WORKER, fake.folder("teacher").path)
        lines = list(cancel("birds", fake.root, "x", 0.0))
        assert "birds:teacher is asked to stop" in lines  # by the launcher: a second signal would end it hard
        assert f"its launcher ({launcher.pid}) is told: a checkpoint comes first" in lines
        assert launcher.communicate(timeout=20)[0] == "told\n"
        assert worker.poll() is None
        assert [fake.folder("student", s).state()["state"] for s in "01"] == ["cancelled"] * 2
        assert fake.folder("data").state()["state"] == "done"

    def test_without_a_launcher_its_workers_are_told(self, fake: Fake, start: Any) -> None:
        worker = start(WORKER, fake.folder("teacher").path)
        assert "birds:teacher stopped at step 124" in list(cancel("birds", fake.root, "x", 20.0))
        assert worker.wait(20) == 0

    def test_what_another_live_sweep_needs_goes_on(self, fake: Fake, start: Any, tmp_path: Path) -> None:
        other = fake.root.create_sweep("other", "0" * 64)
        plan = fake.sweep.plan()
        teacher = plan["trials"][0]["stages"]["teacher"]
        other.plan_file.write_text(json.dumps({**plan, "stages": {teacher: plan["stages"][teacher]}}))
        start(LAUNCHER, other.path)
        start(LAUNCHER, fake.sweep.path)
        lines = list(cancel("birds", fake.root, "x", 0.0))
        assert "birds:teacher goes on: other-00000000 needs it too" in lines
        assert not fake.folder("teacher").cancel_request()
        assert not any("launcher" in line for line in lines)

    def test_with_nothing_open_cannot_be(self, fake: Fake) -> None:
        finish(fake.folder("teacher"))
        for seed in "01":
            finish(fake.folder("student", seed))
        with pytest.raises(StageError, match="nothing to cancel"):
            list(cancel("birds", fake.root, "x", 0.0))


def test_the_command_says_what_it_did(fake: Fake) -> None:
    command = [sys.executable, ROOT / "launch" / "cancel.py", "birds", "--runs", fake.root.path, "--wait", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "birds:teacher cancelled (it was waiting)"
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("error: birds has nothing to cancel")
