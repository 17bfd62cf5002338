"""Own metrics, further test sets and exports, as a user asks for them: before a sweep runs and when it is done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.jobs.stage_exports import write_exports
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.train.measure import run_measurement
from kdscale.train.stop import Stop
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {
    "name": "own",
    "plugins": {"path": ["."], "allow": ["wings"]},
    "data": SMALL_DATA,
    "train": SMALL_TRAIN | {"epochs": 1},
    "engine": {"processes": 2},
    "eval": {
        "metrics": ["wings.metrics:accuracy"],
        "sets": {
            "again": {"limit": 100},
            "other": {"options": SMALL_DATA["options"] | {"seed": 3, "test_rows": 50}, "metrics": []},
        },
    },
    "tracking": {"uri": "off"},
    "stages": {
        "student": {"student": {"model": "resnet_cifar", "depth": 8}, "losses": [{"name": "ce"}]},
    },
}
METRICS = """
def accuracy(logits, labels):
    right = (logits.argmax(1) == labels).float()
    return {"all": right.mean(), "worst": min(right[labels == c].mean() for c in labels.unique())}

def broken(logits, labels):
    return 1 / 0
"""


EXPORT = "stages.student.export={formats: [safetensors]}"


@dataclass(frozen=True)
class Place:
    """A user's folder: a config, a package with metrics, and runs."""

    path: Path

    def launched(self, *arguments: str, code: int = 0) -> str:
        """What `launch/sweep.py` prints."""
        command = [sys.executable, "launch/sweep.py", str(self.path / "own.yaml"), "--runs", str(self.runs), *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def sweep(self) -> Path:
        [folder] = (self.runs / "sweeps").iterdir()
        return folder

    @property
    def row(self) -> dict[str, Any]:
        [row] = json.loads((self.sweep / "results.json").read_text())
        return dict(row)

    @property
    def student(self) -> StageFolder:
        [found] = [stage for stage in Root(self.runs).stages() if stage.name == "student"]
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A sweep that has ended."""
    path = tmp_path_factory.mktemp("own")
    (path / "wings").mkdir()
    (path / "wings" / "__init__.py").touch()
    (path / "wings" / "metrics.py").write_text(METRICS)
    (path / "own.yaml").write_text(yaml.safe_dump(CONFIG))
    place = Place(path)
    said = place.launched()
    assert "stages: 4 done" in said, "two data sets are converted, one of them for two readers"
    return place


def test_one_process_measures_what_two_have_trained(done: Place) -> None:
    row = done.row
    metrics, sets = row["extra"]["metrics"], row["extra"]["sets"]
    assert metrics["accuracy"]["all"] == pytest.approx(row["top1"])
    assert metrics["accuracy"]["worst"] == pytest.approx(min(row["extra"]["per_class"]))
    for figure in ("top1", "top5", "nll", "ece"):
        assert sets["again"][figure] == pytest.approx(row[figure], abs=1e-6)
    assert (sets["again"]["rows"], sets["other"]["rows"]) == (100, 50)
    assert sets["again"]["metrics"] == metrics
    assert sets["other"]["nll"] != row["nll"]
    assert "metrics" not in sets["other"], "it says that it has none"


def test_what_is_asked_for_later_trains_nothing(done: Place) -> None:
    said = done.launched("eval.metrics=['wings.metrics:accuracy',macro_f1]", EXPORT, "--cluster", "inline")
    row = done.row
    assert row["extra"]["metrics"]["accuracy"]["all"] == pytest.approx(row["top1"])
    assert 0 < row["extra"]["metrics"]["macro_f1"] < 1
    assert len(done.student.state()["attempts"]) == 1
    [exported] = (done.runs / "exports").iterdir()
    assert exported.name == f"student-{row['digest'][:4]}"
    assert f"export    {exported}" in said
    assert (exported / "modeling.py").is_file()
    before = exported.stat().st_mtime_ns
    assert write_exports(done.runs, done.sweep, pytest.fail)
    assert exported.stat().st_mtime_ns == before, "a folder that is there stays"


def test_a_metric_that_fails_loses_nothing(done: Place) -> None:
    said = done.launched("eval.metrics=['wings.metrics:broken']", "--cluster", "inline", code=1)
    problem = "stages.student.eval.metrics: wings.metrics:broken on test raises ZeroDivisionError: division by zero"
    assert problem in " ".join(said.split())
    assert done.row["top1"] is not None
    assert len(done.student.state()["attempts"]) == 1


def copied(done: Place, folder: Path) -> Place:
    shutil.copytree(done.runs / "stages", folder / "runs" / "stages", symlinks=True)
    shutil.copytree(done.sweep, folder / "runs" / "sweeps" / done.sweep.name)
    return Place(folder)


def test_a_measurement_that_is_stopped_begins_anew(
    done: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    root = Root(copied(done, tmp_path).runs)
    folder = next(f for f in root.stages() if f.name == "student-eval" and f.state()["state"] == "done")
    before = folder.state()["results"]
    folder.write_state(state="waiting", results=None)
    stop = Stop()
    stop.ask("asked to stop by its user")
    assert not run_measurement(root.path, folder.digest, stop)
    assert (folder.state()["state"], folder.state()["reason"]) == ("interrupted", "asked to stop by its user")
    assert run_measurement(root.path, folder.digest)
    state = folder.state()
    assert state["results"] | {"wall_s": 0} == before | {"wall_s": 0}
    assert state["step"] == state["steps"]


def test_an_export_that_fails_is_told_and_harms_nothing(done: Place, tmp_path: Path) -> None:
    place = copied(done, tmp_path)
    plan = json.loads((place.sweep / "plan.json").read_text())
    plan["stages"][place.row["digest"]]["export"] = {"formats": ["safetensors"]}
    (place.sweep / "plan.json").write_text(json.dumps(plan))
    place.student.snapshot("last").write_bytes(b"damaged")
    said: list[str] = []
    assert not write_exports(place.runs, place.sweep, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"export    FAILED {place.student.path.name}: ")
    assert "is not what the stage recorded" in said[0]
    assert not (place.runs / "exports").exists()


def test_a_measured_student_is_no_teacher_that_would_be_trained_again(done: Place) -> None:
    said = done.launched("train.lr=0.2", "--explain")
    assert "train.lr 0.05 -> 0.2" in said
    assert "also retrains" not in said
