"""launch/track.py as a user calls it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.errors import ConfigError
from kdscale.trackers.command import Place, free_port
from tests.fake_runs import FakeSweep, plan
from tests.tracking_store import stored_runs

ROOT = Path(__file__).resolve().parents[3]


def track(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "track.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def done(sweep: FakeSweep) -> FakeSweep:
    for stage in sweep.stages.values():
        if not stage.attempts:
            stage.start().finish()
    return sweep


def test_sync_ships_every_sweep_and_then_nothing(runs: Path) -> None:
    done(plan(runs, "first", {}))
    done(plan(runs, "second", {"method": ["kd"]}))
    plan(runs, "private", {"method": ["crd"]}, uri="off")
    result = track("sync", "--runs", runs)
    assert (result.returncode, result.stderr) == (0, "")
    assert "tracking.uri is off" in result.stdout
    stored = stored_runs(runs / "mlflow.db")
    assert sorted(run.name for run in stored if run.level == "sweep") == ["first", "second"]
    again = track("sync", "first", "--runs", runs)
    assert again.returncode == 0
    assert "0 values shipped now" in again.stdout
    assert stored_runs(runs / "mlflow.db") == stored


def test_sync_calls_a_stage_without_a_process_interrupted(runs: Path) -> None:
    sweep = plan(runs, axes={})
    sweep.stage("teacher").start().train(100)
    assert track("sync", "--runs", runs).returncode == 0
    assert {run.status for run in stored_runs(runs / "mlflow.db")} == {"KILLED"}


def test_sync_says_that_a_server_is_away(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for name in ("first", "second"):
            plan(tmp_path, name, {}, uri=uri)
        result = track("sync", "--runs", tmp_path)
    assert result.returncode == 1
    assert result.stdout.count("connection refused") == 1, "the others do not wait for the same server again"
    assert result.stdout.count("waits too") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sync", "nothing"], "nothing"),
        (["sync", "--uri", "https://me:pw@lab"], "MLFLOW_TRACKING_TOKEN"),
        (["ui", "secret"], "off"),
        (["ui", "open:teacher"], "is a stage"),
    ],
)
def test_usage_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    plan(tmp_path, "open", {}).stage("teacher").start()
    plan(tmp_path, "secret", {"method": ["ce"]}, uri="off")
    result = track(*arguments, "--runs", tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "pw@" not in result.stderr + result.stdout


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) not in (0, port)
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(ConfigError, match="--host"):
        free_port("203.0.113.7", 0)


def test_the_tunnel_names_this_node() -> None:
    node = socket.gethostname()
    assert Place(port=5001).tunnel().endswith(f"@{node}")
    assert Place(port=5001).tunnel().startswith("ssh -L 5001:127.0.0.1:5001 ")
    assert Place("0.0.0.0", 5001).tunnel().startswith(f"ssh -L 5001:{node}:5001 ")
