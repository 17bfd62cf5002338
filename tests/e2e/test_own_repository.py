"""The tutorial in examples/garments: what its README says to type is typed, in a copy of the folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unit.data.places import FASHION


def commands(readme: Path) -> list[str]:
    """The lines of its `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", readme.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no Fashion-MNIST in {FASHION}")
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_its_readme_says(tmp_path: Path, root: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(
        root / "examples" / "garments", mine, ignore=shutil.ignore_patterns("pictures", "runs", "exports", "*.pth")
    )
    user = tmp_path / "config"
    user.mkdir()
    (user / "kdscale.yaml").write_text("tracking: {uri: off}\n")
    own = {
        "KDSCALE": str(root),
        "PYTHONPATH": str(root),
        "XDG_CONFIG_HOME": str(user),
        "COLUMNS": "120",
        "KDSCALE_RUNS": str(mine / "runs"),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {}
    for line in commands(mine / "README.md"):
        done = subprocess.run(
            ["bash", "-c", line], cwd=mine, env={**os.environ, **own, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        said[line] = done.stdout
    everything = "\n".join(said.values())
    assert "late" in said["python $KDSCALE/launch/sweep.py --list taps garments.nets:GarmentNet size=28"]
    assert everything.count("keeps the contract") == 2
    assert "FAIL" not in everything
    (document,) = (json.loads(file.read_text()) for file in mine.glob("exports/student-*/model.json"))
    assert "sandal" in document["class_names"]
    assert re.search(r"0003\.png  [\w-]+ [01]\.\d{3}", everything)
    results = json.loads(next(mine.glob("runs/sweeps/*/results.json")).read_text())
    assert {(row["stage"], row["trial"]["method"]) for row in results if row["state"] == "done"} >= {
        ("student", "alone"), ("student", "taught"), ("hints", "taught"), ("teacher", "taught"),
    }  # fmt: skip
    taught = next(row for row in results if (row["stage"], row["trial"]["method"]) == ("student", "taught"))
    assert taught["top1"] > 0.3, "chance is 0.1"


def test_the_screen_of_its_readme_is_todays(root: Path, tmp_path: Path) -> None:
    folder = root / "examples" / "garments"
    done = subprocess.run(
        [sys.executable, str(root / "launch" / "check.py"), "garments.order", "--path", str(folder)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = next(
        block for block in re.findall(r"```text\n(.*?)```", (folder / "README.md").read_text(), re.S) if "ok" in block
    )
    lines = [line for line in shown.splitlines() if line.strip() != "..."]
    assert done.stdout.splitlines()[: len(lines)] == lines
