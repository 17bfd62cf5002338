"""A real SLURM cluster of two nodes on this machine, up for the session, and sweeps submitted to it as a user does."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.pipeline.artifacts import Root, StageFolder
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN, untimed_metrics

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "slurm" / "local-cluster" / "cluster.sh"
PROFILE = ROOT / "slurm" / "profiles" / "local-cluster.yaml"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
EXPERIMENT: dict[str, Any] = {
    "name": "drill",
    "data": SMALL_DATA,
    "train": SMALL_TRAIN | {"checkpoint_every_steps": 25},
    "tracking": {"uri": "off"},
    "stages": {
        "teacher": {"student": NET, "losses": [{"name": "ce"}]},
        "student": {
            "student": NET,
            "teachers": {"teacher": {"from": "teacher"}},
            "losses": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}],
        },
    },
}  # fmt: skip
PLACE: dict[str, str] = {}
"""Where the session's cluster is: every test has its environment swept clean of KDSCALE_ settings."""


def control(*command: str) -> str:
    """Run cluster.sh."""
    done = subprocess.run([CLUSTER, *command], env=os.environ | PLACE, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def slurm_env() -> dict[str, str]:
    found = dict(line.removeprefix("export ").split("=", 1) for line in control("env").splitlines())
    return {"SLURM_CONF": found["SLURM_CONF"]}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Up for all tests; where there is no SLURM, or no root for its nodes' namespaces, they are skipped and say so.

    With REQUIRE=slurm, as in CI, they fail instead.
    """
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing or os.geteuid():
        why = f"no SLURM to be had here: {', '.join(missing) or 'two nodes need root'} (make test-slurm)"
        (pytest.fail if "slurm" in os.environ.get("REQUIRE", "") else pytest.skip)(why)
    with socket.socket() as probe:  # twenty ports in a row, below those that the kernel gives away
        probe.bind(("127.0.0.1", 0))
        port = 12000 + probe.getsockname()[1] % 4000
    with tempfile.TemporaryDirectory(prefix="kdscale-slurm-", dir="/tmp") as folder:
        PLACE.update({"KDSCALE_CLUSTER": folder, "KDSCALE_CLUSTER_PORT": str(port)})
        os.environ["PATH"] = path
        small = Path(folder) / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(small)]
        subprocess.run(mount, check=True)  # before the nodes, which see no later mounts
        control("up")
        os.environ |= slurm_env()
        try:
            yield
        finally:
            control("down")
            subprocess.run(["umount", "-l", str(small)], check=True)
            del os.environ["SLURM_CONF"]


@dataclass
class Drill:
    """One runs root, and a sweep in it."""

    root: Path
    config: Path
    cluster: Path | str = PROFILE

    def sweep(self, *overrides: str, check: bool = True, detach: bool = False) -> subprocess.CompletedProcess[str]:
        """launch/sweep.py, to its end."""
        done = subprocess.run(
            self.command(*overrides, *(["--detach"] if detach else [])), capture_output=True, text=True, timeout=400
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def command(self, *overrides: str) -> list[str]:
        return [
            sys.executable, str(ROOT / "launch" / "sweep.py"), str(self.config), *overrides,
            "--cluster", str(self.cluster), "--runs", str(self.root),
        ]  # fmt: skip

    def ask_for(self, **changes: Any) -> Drill:
        """The same with a profile of its own."""
        self.cluster = self.config.with_suffix(".profile.yaml")
        self.cluster.write_text(yaml.safe_dump(yaml.safe_load(PROFILE.read_text()) | changes))
        return self

    def heal(self) -> str:
        """launch/status.py --heal, as cron does it."""
        command = [sys.executable, str(ROOT / "launch" / "status.py"), "--heal", "--runs", str(self.root)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200).stdout

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*overrides), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def stages(self, name: str) -> list[StageFolder]:
        return [folder for folder in Root(self.root).stages() if folder.name == name]

    def stage(self, name: str) -> StageFolder:
        (folder,) = self.stages(name)
        return folder

    def state(self, name: str) -> dict[str, Any]:
        return self.stage(name).state()

    def weights(self, name: str) -> bytes:
        return (self.stage(name).path / "student.safetensors").read_bytes()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Without what the clock decides."""
        return untimed_metrics(self.stage(name))

    def jobs(self) -> list[dict[str, Any]]:
        notes = [json.loads(path.read_text()) for path in sorted((self.root / "jobs").glob("*.json"))]
        return [task for note in notes for task in note["tasks"]]

    def becomes(self, name: str, state: str, within_s: float = 120.0) -> dict[str, Any]:
        """Wait until a stage is in a state; returns all that is known of it."""
        wait_until(lambda: bool(self.stages(name)) and self.state(name)["state"] == state, within_s)
        return self.state(name)

    def reaches(self, name: str, step: int, within_s: float = 90.0) -> None:
        """Wait until a stage has trained so far."""
        wait_until(lambda: bool(self.stages(name)) and int(self.state(name)["step"]) >= step, within_s)


def own_net(drill: Drill, made: str = "", forward: str = "") -> tuple[str, ...]:
    """Overrides with which the teacher is a network of the user's own; what it does when it is made, and in a step."""
    plugin = drill.config.parent / "own_net.py"
    plugin.write_text(
        "import errno, os, pathlib, socket, time\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self, classes):\n        super().__init__()\n        self.head = nn.Linear(256, classes)\n"
        f"        {made}\n"
        f"    def forward(self, x):\n        {forward}\n        return self.head(x.flatten(1))\n"
    )
    return (
        f"plugins.path=[{plugin.parent}]",
        "plugins.allow=[own_net]",
        "stages.teacher.student={model: 'own_net:Net'}",
    )


def wait_until(true: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            queue = subprocess.run(["squeue"], capture_output=True, text=True).stdout
            raise AssertionError(f"not within {within_s} s; the queue:\n{queue}")
        time.sleep(0.2)


Make = Callable[..., Drill]


@pytest.fixture
def drill(cluster: None, tmp_path: Path) -> Iterator[Make]:
    """Sweeps of a test's own; what is left of them in the queue, as where a test fails, would disturb the next one."""

    def make(name: str = "runs", config: dict[str, Any] = EXPERIMENT, cluster: Path | str = PROFILE) -> Drill:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return Drill(tmp_path / name, path, cluster)

    yield make
    subprocess.run(["scancel", "--user", getpass.getuser()], check=True)
    wait_until(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout, 60)


@pytest.fixture
def small_disk(cluster: None) -> Path:
    """A file system of 48 MB that the nodes see too."""
    return Path(PLACE["KDSCALE_CLUSTER"]) / "small"


@pytest.fixture(scope="session")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Drill]:
    """The same sweep without a cluster, left alone, of as many processes; each set of overrides is run once."""
    known: dict[tuple[str, ...], Drill] = {}

    def make(*overrides: str, processes: int = 1) -> Drill:
        overrides = (*overrides, f"engine.processes={processes}")
        if overrides not in known:
            place = tmp_path_factory.mktemp("undisturbed")
            (place / "drill.yaml").write_text(yaml.safe_dump(EXPERIMENT))
            known[overrides] = box = Drill(place / "runs", place / "drill.yaml", "local")
            # as many cores as processes: threads that share a sum may round it in another order
            cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:processes]))
            subprocess.run(["taskset", "-c", cores, *box.command(*overrides)], check=True, capture_output=True)
        return known[overrides]

    return make
