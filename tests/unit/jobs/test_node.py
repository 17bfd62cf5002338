"""What the job of a probe finds out, run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdscale.doctor.findings import Finding
from kdscale.jobs.slurm.node import look_around
from tests.mlflow_server import free_port


@pytest.fixture
def nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


def seen(root: Path, nobody: str, **wanted: Any) -> dict[str, Finding]:
    question = {
        "schema": 1, "root": str(root), "files": [], "tracking": None, "ship": "auto", "internet": nobody,
        "stage_to": [], "bytes": 0,
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "x.asked.json").write_text(json.dumps(question | wanted))
    look_around(str(root / "x.asked.json"))
    answer = json.loads((root / "x.json").read_text())
    assert answer["complete"]
    return {finding["name"]: Finding(**finding) for finding in answer["findings"]}


def entry(kind: str, path: Path, size: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "name": path.name, "path": str(path), "bytes": size}


def test_what_is_there_is_seen(tmp_path: Path, nobody: str) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"1234")
    found = seen(
        tmp_path / "runs", nobody, stage_to=[str(tmp_path / "own")], bytes=100,
        files=[entry("weights", tmp_path / "net.safetensors", 4), entry("data", tmp_path)],
    )  # fmt: skip
    assert [name for name, finding in found.items() if finding.state != "ok"] == []
    assert found["weights"].text == "sees weights (1 found)"
    assert "torch" in found["torch"].text
    assert not (tmp_path / "own").exists()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"x.asked.json", "x.json"}


def test_what_is_missing_or_another_file_stops(tmp_path: Path, nobody: str) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"1234")
    found = seen(
        tmp_path / "runs", nobody,
        files=[entry("weights", tmp_path / "net.safetensors", 5), entry("data", tmp_path / "gone")],
    )  # fmt: skip
    assert found["weights"].stops
    assert "has 4 bytes here, 5 on the login node" in found["weights"].text
    assert found["data"].stops
    assert "no such file" in found["data"].text


@pytest.mark.parametrize(("ship", "state"), [("auto", "ok"), ("job", "broken")])
def test_a_server_out_of_reach_matters_to_jobs_that_are_to_ship(
    tmp_path: Path, nobody: str, ship: str, state: str
) -> None:
    found = seen(tmp_path, nobody, tracking=nobody, ship=ship)
    assert found["tracking"].state == state
    assert found["tracking"].details == {"reachable": False}
    assert "connection refused" in found["internet"].text


def test_a_node_s_disk_without_room_is_a_note(tmp_path: Path, nobody: str) -> None:
    found = seen(tmp_path / "runs", nobody, stage_to=[str(tmp_path)], bytes=10**18)
    assert (found["stage_to"].state, found["stage_to"].stops) == ("note", False)
    assert "data will be read where it lies" in found["stage_to"].mend
