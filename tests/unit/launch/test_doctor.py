"""launch/doctor.py as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from kdscale.doctor.data_sets import examine_data_sets
from kdscale.doctor.findings import Finding
from kdscale.doctor.screen import draw
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.site import examine_cluster


def doctor(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "launch" / "doctor.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['doctor.py', '--help']\n"
        "try: runpy.run_path('launch/doctor.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


def test_the_json_holds_versions_folder_and_data(root: Path, tmp_path: Path) -> None:
    run = doctor(root, "--json", "--runs", str(tmp_path))
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["schema"] == 1
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert found["torch"]["details"]["version"]
    assert found["locks"]["state"] == found["rename"]["state"] == "ok"
    assert found["room"]["details"]["path"] == str(tmp_path)
    assert found["synthetic"]["state"] == "ok"


def test_an_unknown_cluster_is_a_usage_error(root: Path) -> None:
    run = doctor(root, "--cluster", "nowhere.yaml")
    assert run.returncode == 2
    assert "nowhere.yaml: local, inline, slurm, or a profile" in run.stderr


def test_a_machine_without_a_scheduler_is_said_to_be_no_login_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = examine_cluster(Profile(), tmp_path / "runs", print)
    assert finding.stops
    assert "is this a login node" in finding.text
    assert not (tmp_path / "runs").exists()


def test_where_a_data_set_was_looked_for_is_shown_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KDSCALE_DATA", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    findings = list(examine_data_sets())
    for whole in (False, True):
        draw(findings, Console(width=300, force_terminal=True), whole_data=whole)
        text = capsys.readouterr().out
        assert "cifar100: not here (3 places looked at" in text
        assert (str(tmp_path / "kdscale" / "data" / "cifar100") in text) == whole
        assert "\x1b[3" not in text, "NO_COLOR"


def test_what_stops_training_is_named_last(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding("software", "numba", "missing", "MISSING", "`make setup` brings it", needed=True),
        Finding("software", "timm", "missing", "MISSING", "only for models"),
    ]
    draw(findings, Console(width=120))
    assert capsys.readouterr().out.strip().splitlines()[-1] == "NOT READY: numba"
