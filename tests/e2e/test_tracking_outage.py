"""A tracking server that comes and goes: training never waits, and everything is there once in the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdscale.trackers.shipping import start_shipper
from kdscale.trackers.spool import read_lines
from tests.fake_runs import FakeSweep, plan
from tests.mlflow_server import LossyProxy, RealServer
from tests.tracking_store import stored_runs

ROOT = Path(__file__).resolve().parents[2]
CANARY = "c4n4ry-0f-a-t0ken"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    real = RealServer(tmp_path / "server")
    yield real
    real.kill()


def sync(runs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / "track.py"), "sync", "--runs", str(runs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def assert_whole(sweep: FakeSweep, server: RealServer) -> None:
    """Every run once, and every curve as the spool has it, with the spool's own times."""
    runs = stored_runs(server.database)
    assert len({run.tags["kdscale.key"] for run in runs}) == len(runs)
    assert not [(run.name, run.doubled()) for run in runs if run.doubled()]
    for stage in sweep.stages.values():
        (run,) = [run for run in runs if run.tags["kdscale.key"] == f"stage:{stage.digest}"]
        lines = list(read_lines((stage.folder / "metrics.jsonl").read_bytes()))
        for metric in ("train/loss", "val/top1", "test/top1"):
            expected = [(line.step, line.metrics[metric]) for line in lines if metric in line.metrics]
            assert run.curve(metric) == expected, (run.name, metric)


def within(seconds: float, happens: Callable[[], object]) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.2)


def test_away_at_the_start_in_the_middle_and_at_the_end(
    tmp_path: Path, server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", CANARY)
    sweep = plan(tmp_path / "runs", axes={"seed": ["0", "1"]}, uri=server.uri)
    answer, said = run_through_outages(sweep, server)
    assert "track.py sync" in answer["problems"][0]
    assert [("does not take" in line, "again" in line) for line in said[:4]] == [(True, False), (False, True)] * 2
    assert sync(sweep.root).returncode == 1
    server.start()
    result = sync(sweep.root)
    assert result.returncode == 0, result.stdout
    assert_whole(sweep, server)
    assert {run.status for run in stored_runs(server.database)} == {"FINISHED"}
    assert "0 values shipped now" in sync(sweep.root).stdout
    server.kill()
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "server.log"]
    assert not any(CANARY.encode() in text for text in texts), "credentials stay in the environment"
    assert any(b"resnet_cifar" in text for text in texts), "the search would have found one"


def run_through_outages(sweep: FakeSweep, server: RealServer) -> tuple[dict[str, Any], list[str]]:
    teacher, said = sweep.stage("teacher"), list[str]()
    shipper = start_shipper(sweep.root, sweep.folder, server.uri, "kdscale", say=said.append)
    teacher.start().train(60).save()
    within(60, lambda: said)  # away at the start
    server.start()
    within(120, lambda: len(said) == 2)
    teacher.train(80)
    within(120, lambda: 140 in {step for run in stored_runs(server.database) for step, _ in run.curve("train/loss")})
    server.kill()  # away in the middle, while a stage dies and writes steps again
    teacher.die().clock += 30
    teacher.start().train(20)
    within(120, lambda: len(said) == 3)
    teacher.finish()
    server.start()
    within(120, lambda: len(said) == 4)
    sweep.stage("student", seed="0").start().finish()
    server.kill()  # away at the end
    sweep.stage("student", seed="1").start().finish()
    return shipper.finish(60.0), said


def test_a_server_that_hangs_holds_up_nobody(tmp_path: Path, server: RealServer) -> None:
    server.start()
    sweep = plan(tmp_path / "runs", axes={}, uri=server.uri)
    for stage in sweep.stages.values():
        stage.start().finish()
    server.send(signal.SIGSTOP)  # takes connections, answers nothing
    result = sync(sweep.root)
    assert result.returncode == 1
    assert "no answer within 5 s" in result.stdout
    server.send(signal.SIGCONT)
    assert sync(sweep.root).returncode == 0
    assert_whole(sweep, server)


def test_requests_that_were_carried_out_without_an_answer_are_not_doubled(tmp_path: Path, server: RealServer) -> None:
    server.start()
    proxy = LossyProxy(server, every=7)
    sweep = plan(tmp_path / "runs", axes={"seed": ["0"]}, uri=proxy.uri)
    teacher = sweep.stage("teacher").start().train(100).save()
    try:
        sync(sweep.root)
        teacher.train(60)
        sync(sweep.root)
        teacher.die().clock += 11
        teacher.start().finish()
        sweep.stage("student").start().finish()
        for _ in range(12):
            if sync(sweep.root).returncode == 0:
                break
    finally:
        proxy.close()
    assert proxy.lost >= 3
    assert_whole(sweep, server)
    assert len(stored_runs(server.database)) == 5
