"""Nodes without a network: what is prepared for them, that they fetch nothing, and who brings metrics to a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.matrix import MATRIX
from tests.mlflow_server import RealServer, free_port
from tests.plugins.drowsy import SLOWLY_TAUGHT
from tests.slurm.conftest import EXPERIMENT, PLACE, PROFILE, ROOT, Drill, Make, wait_until
from tests.tracking_store import stored_runs
from tests.unit.data.places import FASHION

ONLY_TEACHER = "stages.student=null"
SHORT = (ONLY_TEACHER, "train.epochs=1")
CANARY = "c4n4ry-0f-a-t0ken"
REAL: dict[str, Any] = EXPERIMENT | {
    "data": {"name": "fashion_mnist", "limit": 320, "limit_test": 100},
    "train": EXPERIMENT["train"] | {"epochs": 1},
}

pytestmark = pytest.mark.skipif(not FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data that is hidden from a node at will."""
    shutil.copytree(FASHION, tmp_path / "data" / "fashion_mnist")
    monkeypatch.setenv("KDSCALE_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def hide() -> Iterator[Callable[[Path], None]]:
    """Put an empty folder over one, as the nodes see it."""
    hidden: list[Path] = []

    def on_nodes(*command: str) -> None:
        for name in ("n1", "n2"):
            pid = (Path(PLACE["KDSCALE_CLUSTER"]) / "pid" / f"init.{name}.pid").read_text().strip()
            subprocess.run(["nsenter", "--target", pid, "--mount", *command], check=True)

    def hide(folder: Path) -> None:
        on_nodes("mount", "-t", "tmpfs", "none", str(folder))
        hidden.append(folder)

    yield hide
    for folder in hidden:
        on_nodes("umount", str(folder))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    running = RealServer(tmp_path / "server").start()
    yield running
    running.kill()


# --------------------------------------------------------------------------- --prepare


def test_prepare_makes_the_runs_and_asks_a_node_and_trains_nothing(data: Path, drill: Make) -> None:
    box = drill(config=REAL)
    own = (ONLY_TEACHER, "tracking.uri=null", f"data.stage_to={data}/own")
    said = box.sweep("--prepare", *own).stdout
    assert f"fashion_mnist: 4 files, 30.9 MB, {data}/fashion_mnist" in said
    assert "experiment kdscale, 2 runs there" in said
    assert "sees data (4 found)" in said
    assert f"{data}/own has" in said
    assert f"sees {box.root}" in said
    assert "torch" in said
    assert said.splitlines()[-1].startswith(" then      python launch/sweep.py")
    assert not box.stages("teacher")
    assert not box.stages("data")
    runs = stored_runs(box.root / "mlflow.db")
    assert sorted((run.level, run.status) for run in runs) == [("sweep", "RUNNING"), ("trial", "SCHEDULED")]
    box.sweep(*own)
    assert len([run for run in stored_runs(box.root / "mlflow.db") if run.level == "trial"]) == 1
    log = next(box.stage("teacher").logs.glob("attempt1-rank0.log")).read_text()
    assert f"GB of data to {data}/own" in log


def test_prepare_tells_what_a_node_does_not_see(data: Path, drill: Make, hide: Callable[[Path], None]) -> None:
    box = drill(config=REAL)
    hide(data)
    done = box.sweep("--prepare", ONLY_TEACHER, check=False)
    assert done.returncode == 1
    assert "and 3 more" in done.stdout
    assert f"{data}/fashion_mnist/t10k-images-idx3-ubyte.gz: no such file or directory" in done.stdout
    assert "KDSCALE_DATA=/shared/folder" in done.stdout
    assert "NOT READY: nodes" in done.stdout


def test_a_variable_that_nodes_lack_is_told_before_a_sweep_stumbles_over_it(drill: Make) -> None:
    done = drill().sweep("--prepare", *SHORT, "data.stage_to=$NO_SUCH_DISK", check=False)
    assert done.returncode == 1
    assert "data.stage_to: $NO_SUCH_DISK is not set on n" in done.stdout


@MATRIX
def test_a_run_root_that_nodes_do_not_see(drill: Make, hide: Callable[[Path], None]) -> None:
    box = drill()
    box.root.mkdir()
    hide(box.root)
    done = box.sweep("--prepare", *SHORT, check=False)
    assert done.returncode == 1
    assert f"does every node see {box.root}?" in done.stdout


def test_prepare_that_is_left_comes_back_to_its_probe(drill: Make) -> None:
    box = drill()
    subprocess.run(["scontrol", "update", "partition=low", "state=down"], check=True)
    try:
        first = box.sweep("--prepare", *SHORT, detach=True).stdout
        second = box.sweep("--prepare", *SHORT, detach=True).stdout
    finally:
        subprocess.run(["scontrol", "update", "partition=low", "state=up"], check=True)
    assert "submitted to low" in first
    assert "is queued to low" in second
    assert "sees" in box.sweep("--prepare", *SHORT).stdout


def test_a_dry_run_lists_what_would_be_fetched(drill: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KDSCALE_DATA", raising=False)
    said = drill().sweep("--dry-run", *SHORT, "data={name: cifar10}").stdout
    assert "to fetch: cifar10 from https://www.cs.toronto.edu/~kriz (cifar-10-binary.tar.gz)" in said
    assert not (tmp_path / "cache").exists()


# --------------------------------------------------------------------------- jobs fetch nothing


def test_a_job_whose_data_is_gone_fetches_nothing(data: Path, drill: Make, hide: Callable[[Path], None]) -> None:
    """Found by the launcher, hidden from the node: the job names the mend, whether or not there is a network."""
    box = drill(config=REAL)
    hide(data)
    hide(FASHION)
    done = box.sweep(ONLY_TEACHER, check=False)
    assert done.returncode == 1
    assert box.state("data")["state"] == "failed"
    reason = " ".join(box.state("data")["reason"].split())
    assert "a job never downloads" in reason
    assert "--prepare" in reason
    assert box.state("teacher")["state"] == "blocked"
    assert not list(data.glob("fashion_mnist/.*.tmp"))


# --------------------------------------------------------------------------- who ships


def metrics_of(server: RealServer) -> dict[str, int]:
    return {run.level: len(run.points) for run in stored_runs(server.database)} if server.database.exists() else {}


def finished(box: Drill) -> bool:
    return bool(box.stages("teacher")) and box.state("teacher")["state"] == "done"


@pytest.mark.parametrize("ship", ["auto", pytest.param("job", marks=MATRIX)])
def test_jobs_ship_to_a_server_without_anybody_on_the_login_node(
    drill: Make, server: RealServer, ship: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", CANARY)
    box = drill()
    box.sweep(*SHORT, f"tracking={{uri: '{server.uri}', ship: {ship}}}", detach=True)
    wait_until(lambda: finished(box), 90)
    wait_until(lambda: [r.status for r in stored_runs(server.database) if r.level == "stage"] == ["FINISHED"], 60)
    (stage,) = [run for run in stored_runs(server.database) if run.level == "stage"]
    assert stage.doubled() == []
    steps = {step for step, _ in stage.curve("train/loss")}
    assert steps == {line["step"] for line in box.metrics("teacher") if "train/loss" in line}
    written = subprocess.run(["grep", "-rl", CANARY, str(box.root)], capture_output=True, text=True)
    assert written.stdout == ""


@MATRIX
def test_what_a_job_shipped_before_it_was_requeued_is_not_shipped_again(drill: Make, server: RealServer) -> None:
    box = drill()
    long = (ONLY_TEACHER, "train.epochs=35", *SLOWLY_TAUGHT, f"tracking={{uri: '{server.uri}', ship: job}}")
    box.sweep(*long, detach=True)
    box.reaches("teacher", 100)
    wait_until(lambda: metrics_of(server).get("stage", 0) > 0, 60)
    (job,) = [note["job"] for note in box.jobs() if note["stage"] == "teacher"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_until(lambda: finished(box), 180)
    wait_until(lambda: [r.status for r in stored_runs(server.database) if r.level == "stage"] == ["FINISHED"], 60)
    (stage,) = [run for run in stored_runs(server.database) if run.level == "stage"]
    assert len(box.state("teacher")["attempts"]) == 2
    assert stage.doubled() == []
    assert {s for s, _ in stage.curve("train/loss")} == {
        line["step"] for line in box.metrics("teacher") if "train/loss" in line
    }


def test_a_server_that_is_killed_and_comes_back_has_everything_once(drill: Make, server: RealServer) -> None:
    """While its stage is requeued, too."""
    box = drill()
    sweep = box.start(ONLY_TEACHER, "train.epochs=35", *SLOWLY_TAUGHT, f"tracking.uri={server.uri}")
    box.reaches("teacher", 100)
    server.kill()
    (job,) = [note["job"] for note in box.jobs() if note["stage"] == "teacher"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_until(lambda: len(box.state("teacher")["attempts"]) == 2, 60)
    server.start()
    said, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, said
    (stage,) = [run for run in stored_runs(server.database) if run.level == "stage"]
    assert (stage.status, stage.doubled()) == ("FINISHED", [])
    assert stage.curve("train/loss") == [
        (line["step"], line["metrics"]["train/loss"])
        for line in map(json.loads, box.stage("teacher").metrics.read_text().splitlines())
        if "train/loss" in line["metrics"]
    ]


def test_a_server_that_nodes_do_not_reach_costs_a_line(drill: Make) -> None:
    box = drill()
    nobody = f"http://127.0.0.1:{free_port()}"
    box.sweep(*SHORT, f"tracking.uri={nobody}", detach=True)
    wait_until(lambda: finished(box), 90)
    wait_until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout, 60)
    log = next(box.stage("teacher").logs.glob("attempt1-rank0.log")).read_text()
    assert log.count(nobody) == 1
    assert "the login node ships" in log


def test_login_ships_from_the_login_node_alone(drill: Make, server: RealServer) -> None:
    box = drill()
    tracking = f"tracking={{uri: '{server.uri}', ship: login}}"
    box.sweep(*SHORT, tracking, detach=True)
    wait_until(lambda: finished(box), 90)
    assert metrics_of(server) == {}
    sync = [sys.executable, str(ROOT / "launch" / "track.py"), "sync", "--runs", str(box.root)]
    subprocess.run(sync, check=True)
    assert metrics_of(server)["stage"] > 0


def test_a_job_may_not_write_to_sqlite(drill: Make) -> None:
    done = drill().sweep(*SHORT, "tracking={uri: null, ship: job}", check=False)
    assert done.returncode == 2
    assert "tracking.ship: job needs a server" in done.stderr


# --------------------------------------------------------------------------- doctor


def test_the_doctor_examines_a_cluster(cluster: None, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "doctor.py"), "--cluster", str(PROFILE), "--json"]
    done = subprocess.run([*command, "--runs", str(tmp_path / "runs")], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {f"{f['section']} {f['name']}": f for f in json.loads(done.stdout)["findings"]}
    assert found["scheduler partition low"]["state"] == "ok"
    assert found["node torch"]["details"]["kdscale"].startswith(str(tmp_path / "runs" / "code"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({"partition": "nowhere"}))
    done = subprocess.run([*command[:3], str(wrong), "--runs", str(tmp_path / "runs")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere" in done.stdout
