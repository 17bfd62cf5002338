"""The shipping process as the launcher uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kdscale.errors import ConfigError
from kdscale.trackers import shipping
from kdscale.trackers.shipping import ShipperProcess, start_shipper
from tests.fake_runs import FakeSweep, plan
from tests.tracking_store import stored_runs

CANARY = "c4n4ry-0f-a-t0ken"
LAUNCHER = """
import sys, time
from pathlib import Path
from kdscale.trackers.shipping import start_shipper
process = start_shipper(Path(sys.argv[1]), Path(sys.argv[2]), None, "kdscale")
print(process._process.pid, *sorted({"mlflow", "torch"} & set(sys.modules)), flush=True)
time.sleep(60)
"""


def start(sweep: FakeSweep, uri: str | None = None) -> tuple[ShipperProcess, list[str]]:
    said: list[str] = []
    return start_shipper(sweep.root, sweep.folder, uri, "kdscale", say=said.append), said


@pytest.fixture
def nobody() -> Iterator[str]:
    """Address of a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def mute() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def ends(pid: int, within_s: float = 10.0) -> bool:
    try:
        psutil.Process(pid).wait(within_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_sweep_is_shipped_while_and_after_it_runs(runs: Path) -> None:
    sweep = plan(runs, axes={})
    sweep.stage("teacher").start().train(200)
    process, said = start(sweep)
    try:
        until = time.monotonic() + 60
        while not stored_runs(runs / "mlflow.db") and time.monotonic() < until:
            time.sleep(0.1)
        assert stored_runs(runs / "mlflow.db"), "runs are there before the sweep has ended"
        assert process._process is not None
        assert psutil.Process(process._process.pid).nice() == min(19, psutil.Process().nice() + 10)
        sweep.stage("teacher").finish()
        sweep.stage("student").start().finish()
    finally:
        answer = process.finish(60.0)
    assert answer["problems"] == []
    assert (answer["runs"], answer["uri"]) == (4, f"sqlite:///{runs / 'mlflow.db'}")
    assert answer["points"] == sum(len(run.points) for run in stored_runs(runs / "mlflow.db"))
    assert {run.status for run in stored_runs(runs / "mlflow.db")} == {"FINISHED"}
    assert said == []


def test_tracking_that_is_off_starts_nothing(tmp_path: Path) -> None:
    sweep = plan(tmp_path, axes={})
    process, _ = start(sweep, "off")
    assert process.finish() == {"runs": 0, "points": 0, "uri": "off", "problems": []}
    process.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweeps"]


def test_a_server_that_is_away_costs_nothing_and_is_said_once(
    tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", CANARY)
    sweep = plan(tmp_path, axes={}, uri=nobody)
    process, said = start(sweep, nobody)
    assert process._process is not None
    assert process._process.poll() is None, "training waits for nothing: the shipper has just begun"
    sweep.stage("teacher").start().finish()
    answer = process.finish(60.0)
    assert len(answer["problems"]) == 1
    assert "track.py sync" in answer["problems"][0]
    assert [line for line in said if "connection refused" in line] == said
    assert len(said) == 1
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY.encode() not in written
    assert CANARY not in json.dumps(answer) + "".join(said)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    process, _ = start(plan(tmp_path, axes={}, uri=mute), mute)
    time.sleep(0.2)
    answer = process.finish(60.0)
    assert "no answer within 1 s" in answer["problems"][0]


def test_a_shipper_that_takes_too_long_is_ended(tmp_path: Path, mute: str) -> None:
    process, _ = start(plan(tmp_path, axes={}, uri=mute), mute)
    assert process._process is not None
    pid = process._process.pid
    answer = process.finish(0.2)
    assert "not done after 0 s" in answer["problems"][0]
    assert ends(pid)


def test_a_shipper_that_dies_is_said_not_raised(runs: Path) -> None:
    process, _ = start(plan(runs, axes={}))
    assert process._process is not None
    process._process.kill()
    answer = process.finish(30.0)
    assert "exit code -9" in answer["problems"][0]


def test_a_broken_plan_is_said_not_raised(runs: Path) -> None:
    sweep = plan(runs, axes={})
    (sweep.folder / "plan.json").write_text("{")
    process, _ = start(sweep)
    assert "exit code" in process.finish(60.0)["problems"][0]


def test_an_address_with_credentials_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        start(plan(tmp_path, axes={}), "https://me:secret@mlflow.lab")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_launcher_leaves_no_shipper(runs: Path, number: signal.Signals) -> None:
    sweep = plan(runs, axes={})
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(runs), str(sweep.folder)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    pid, *heavy = launcher.stdout.readline().split()
    assert heavy == [], "the launcher imports neither MLflow nor torch for it"
    time.sleep(0.5)
    os.kill(launcher.pid, number)
    launcher.wait()
    launcher.stdout.close()
    assert ends(int(pid))


def test_without_a_launcher_on_its_input_it_ends(runs: Path) -> None:
    sweep = plan(runs, axes={})
    command = [sys.executable, "-m", "kdscale.trackers.shipping", str(runs), str(sweep.folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""


def test_by_hand_it_goes_where_the_plan_says(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = plan(runs, axes={}, uri="off")
    command = [sys.executable, "-m", "kdscale.trackers.shipping", str(runs), str(sweep.folder)]
    done = subprocess.run(command, input="finish\n", capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["uri"] == "off"


def test_trouble_is_said_once_and_its_end_too(capsys: pytest.CaptureFixture[str]) -> None:
    voice = shipping._Voice()
    for problems in ([], ["connection refused"], ["connection refused"], ["no answer within 5 s"], [], []):
        voice(problems, "http://mlflow.lab")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "does not take metrics (connection refused)" in lines[0]
    assert "takes metrics again" in lines[1]
