"""configs/papers as a user runs them, on files of CIFAR's format: paper stands against here, and every stage runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.matrix import MATRIX

PAPERS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs" / "papers").glob("*.yaml"))
FILES = {
    "cifar100/cifar-100-binary": {"train.bin": 50_000, "test.bin": 10_000},
    "cifar10/cifar-10-batches-bin": {
        **{f"data_batch_{number}.bin": 10_000 for number in range(1, 6)}, "test_batch.bin": 10_000,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with synthetic images under CIFAR's names: as many records, each label bytes and three planes."""
    root = tmp_path_factory.mktemp("cifar")
    write(root, "cifar100/cifar-100-binary", classes=100, label_bytes=2)
    return root


@pytest.fixture(scope="module")
def both(cifar: Path) -> Path:
    """The same with CIFAR-10 beside it."""
    write(cifar, "cifar10/cifar-10-batches-bin", classes=10, label_bytes=1)
    return cifar


def write(root: Path, folder: str, classes: int, label_bytes: int) -> None:
    draws = np.random.default_rng(0)
    (root / folder).mkdir(parents=True)
    for name, rows in FILES[folder].items():
        table = draws.integers(0, 64, (rows, label_bytes + 3 * 32 * 32), dtype=np.uint8)
        table[:, :label_bytes] = (np.arange(rows) % classes)[:, None]
        table[:, label_bytes:] += table[:, label_bytes - 1 : label_bytes]
        table.tofile(root / folder / name)


def launched(root: Path, cifar: Path, *arguments: str) -> str:
    """What `launch/sweep.py` prints; it must end well."""
    run = subprocess.run(
        [sys.executable, "launch/sweep.py", *arguments, "tracking.uri=off"],
        cwd=root, env=os.environ | {"KDSCALE_DATA": str(cifar), "COLUMNS": "160"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_report_prints_paper_against_here(root: Path, cifar: Path, tmp_path: Path) -> None:
    said = launched(
        root, cifar, "configs/papers/tfkd.yaml", "method=ce,virtual", "seed=0", "train.epochs=1", "data.limit=256",
        "data.loader=torch", "data.limit_test=200", "stages.student.student={model: resnet_cifar, depth: 8}",
        "--cluster", "inline", "--runs", str(tmp_path),
    )  # fmt: skip
    compared = said[said.index("Paper against here") :].splitlines()
    assert [line.split()[:3] for line in compared if line.startswith(("ce ", "virtual "))] == [
        ["ce", "[1]", "75.87"], ["virtual", "[1]", "77.36"], ["virtual", "over", "ce"],
    ]  # fmt: skip
    (results,) = tmp_path.glob("sweeps/*/results.json")
    rows = json.loads(results.read_text())
    assert [row["trial"]["method"] for row in rows] == ["ce", "virtual"]
    for row in rows:
        assert row["biased"] == ["top1_best_on_test"]
        assert row["top1_best_on_test"] >= row["top1"]
        assert row["best_top1"] is None  # nothing is held out, and nothing chosen
    assert "Paper against here" in results.with_name("report.html").read_text()


@MATRIX
@pytest.mark.parametrize("name", PAPERS)
def test_every_stage_runs_two_steps_of_its_own_recipe(name: str, root: Path, both: Path, tmp_path: Path) -> None:
    one_seed = [] if name == "fsp_ensemble" else ["seed=0"]
    said = launched(root, both, f"configs/papers/{name}.yaml", *one_seed, "--smoke", "--runs", str(tmp_path))
    assert "smoke test passed" in said
