"""launch/report.py as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_report_runs import takd


def report(root: Path, runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "launch/report.py"), *arguments]
    environment = os.environ | {"KDSCALE_RUNS": str(runs), "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_without_a_name_the_latest_sweep_and_its_files_anew(root: Path, tmp_path: Path) -> None:
    sweep = takd(tmp_path)

    done = report(root, tmp_path)

    assert done.returncode == 0, done.stderr
    assert "student" in done.stdout
    assert str(sweep / "report.html") in done.stdout
    assert (sweep / "report.html").exists()
    assert len(json.loads((sweep / "results.json").read_text())) == 3


def test_json_by_name(root: Path, tmp_path: Path) -> None:
    takd(tmp_path)

    done = report(root, tmp_path, "quickstart", "--json")

    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert document["groups"][0]["names"] == ["quickstart:student"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "nothing under"),
        (["quickstart:student"], "is a stage"),
        (["quickstart", "--best", "top1"], "--best val/top1"),
        (["quickstart", "--where", "__import__('os')"], "not allowed"),
        (["quickstart", "--format", "pdf"], "invalid choice"),
        (["quickstart", "--bundle", "out.tar"], "a file that ends in .zip"),
        (["quickstart", "--bundle", "out.zip"], "keeps no code.zip"),
    ],
)
def test_bad_usage_is_2_with_a_line_and_no_traceback(
    root: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    sweep = takd(tmp_path)

    done = report(root, tmp_path, *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (sweep / "report.html").exists()


def test_help_and_tables_never_import_torch(root: Path, tmp_path: Path) -> None:
    takd(tmp_path)
    script = (
        "import runpy, sys; del sys.argv[0]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'matplotlib.figure' in sys.modules)"
    )
    environment = os.environ | {"KDSCALE_RUNS": str(tmp_path)}
    for arguments in (["--help"], ["quickstart", "--format", "md"], ["quickstart", "--bibtex"]):
        command = [sys.executable, "-c", script, str(root / "launch/report.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.splitlines()[-1] == "False False", arguments
