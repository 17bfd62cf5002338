"""What a launch leaves of its code and of what it runs on."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch

import kdscale
from kdscale.jobs.launch_record import packages, record_launch, torch_cuda
from kdscale.pipeline.cost import Cost
from kdscale.pipeline.planned import Plan, PlannedStage
from kdscale.report.archive import read_archive


def plan_with(plugins: dict[str, list[str]]) -> Plan:
    cost = Cost(steps=0, epochs=0, params=0, flops=0, train_flops=0, bytes=0, inodes=0)
    stage = PlannedStage("1" * 64, "s", "train", {}, 0, "net", cost, {"spec": {"plugins": plugins}})
    return Plan("x", "2" * 64, {}, [], {stage.digest: stage}, {})


def test_code_and_own_plugins_are_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "own/birds").mkdir(parents=True)
    (tmp_path / "own/birds/nets.py").write_text("A = 1\n")
    (tmp_path / "own/other.py").write_text("")
    record_launch(tmp_path, plan_with({"path": [str(tmp_path / "own")], "allow": ["birds"]}))
    files = read_archive(tmp_path / "code.zip")
    package = Path(kdscale.__file__).parent
    assert files["kdscale/losses/kd.py"] == (package / "losses/kd.py").read_bytes()
    assert files["plugins/birds/nets.py"] == b"A = 1\n"
    assert "plugins/other.py" not in files
    assert {name.partition("/")[0] for name in files} <= {"kdscale", "plugins", "dirty.diff"}


def test_what_it_runs_on_is_kept(tmp_path: Path) -> None:
    record_launch(tmp_path, plan_with({}))
    found = json.loads((tmp_path / "software.json").read_text())
    assert found["kdscale"] == kdscale.__version__
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert {"commit", "dirty", "python", "system", "machine", "cuda", "driver"} <= found.keys()


def test_a_second_launch_of_the_same_code_writes_nothing(tmp_path: Path) -> None:
    plan = plan_with({})
    record_launch(tmp_path, plan)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    record_launch(tmp_path, plan)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


def test_cuda_is_told_without_torch() -> None:
    assert torch_cuda() == torch.version.cuda


def test_packages_are_in_order() -> None:
    assert list(packages()) == sorted(packages(), key=str.lower)
