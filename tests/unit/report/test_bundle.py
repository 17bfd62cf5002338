"""The file of a sweep: all that a reader and a rerun need, nothing of the machine, and the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdscale.errors import ConfigError
from kdscale.report import bundle
from kdscale.report.archive import pack, read_archive
from kdscale.report.bundle import write_bundle
from tests.fake_report_runs import takd

CANARY = "canary-8c1f"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep that was launched by this kdscale, in the home of somebody with a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HUB_TOKEN", CANARY)
    folder = takd(tmp_path / "runs")
    (folder / "code.zip").write_bytes(pack({"kdscale/a.py": b"A = 1\n", "dirty.diff": f"+{tmp_path}".encode()}))
    (folder / "software.json").write_text(json.dumps({"python": "3.11.2", "packages": {"torch": "2.13.0", "b": "1"}}))
    (folder / "report.html").write_text(f"<p>{tmp_path}/runs")
    stage = next((tmp_path / "runs/stages").glob("student-*"))
    (stage / "logs").mkdir()
    (stage / "logs/rank0.log").write_text(f"started in {tmp_path}/runs on node7 with {CANARY}\n")
    return folder


def test_it_holds_all_that_a_reader_and_a_rerun_need(sweep: Path, tmp_path: Path) -> None:
    said = write_bundle(sweep, tmp_path / "out.zip")
    files = read_archive(tmp_path / "out.zip")
    assert {
        "README.txt",
        "bundle.json",
        "sweep.yaml",
        "code/kdscale/a.py",
        "results.json",
        "report.html",
    } <= files.keys()
    assert files["versions.txt"] == b"torch==2.13.0\nb==1\n"
    assert files["code/kdscale/a.py"] == b"A = 1\n"
    assert len(json.loads(files["results.json"])) == 3
    logs = [data for name, data in files.items() if name.endswith("logs/rank0.log")]
    assert logs == [b"started in RUNS on HOST with REMOVED\n"]
    document = json.loads(files["bundle.json"])
    assert {facts["name"] for facts in document["stages"].values()} == {"data", "teacher", "assistant", "student"}
    assert said == ["left out: weights, data and caches: bundle.json has their hashes"]


def test_equal_sweeps_give_equal_bytes(sweep: Path, tmp_path: Path) -> None:
    write_bundle(sweep, tmp_path / "one.zip")
    write_bundle(sweep, tmp_path / "other.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_nothing_of_the_machine_leaves_it(sweep: Path, tmp_path: Path) -> None:
    write_bundle(sweep, tmp_path / "out.zip")
    for name, data in read_archive(tmp_path / "out.zip").items():
        for word in (CANARY, str(tmp_path), "node7", "sqlite:"):
            assert word.encode() not in data, f"{word} in {name}"


def test_what_is_long_is_cut_and_said(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = next((tmp_path / "runs/stages").glob("student-*/logs/rank0.log"))
    log.write_text("first" + "." * 3000 + "last")
    monkeypatch.setattr(bundle, "LOG_BYTES", 2048)
    monkeypatch.setattr(bundle, "METRICS_BYTES", 4096)
    said = write_bundle(sweep, tmp_path / "out.zip")
    files = read_archive(tmp_path / "out.zip")
    cut = next(data for name, data in files.items() if name.endswith("rank0.log"))
    assert len(cut) == 2048
    assert cut.endswith(b"last")
    assert any(line.endswith("logs/rank0.log: all but its last 2 KiB") for line in said)
    assert not [name for name in files if name.startswith("stages/teacher") and name.endswith("metrics.jsonl")]
    assert any("teacher" in line and "metrics.jsonl: more than" in line for line in said)
    assert all(line.removeprefix("left out: ") in files["README.txt"].decode() for line in said)


def test_the_readme_shows_a_rerun(sweep: Path, tmp_path: Path) -> None:
    write_bundle(sweep, tmp_path / "out.zip")
    assert b"python launch/sweep.py FILE.zip --dry-run" in read_archive(tmp_path / "out.zip")["README.txt"]


def test_a_sweep_that_kept_no_code_is_refused_with_the_mend(sweep: Path, tmp_path: Path) -> None:
    (sweep / "code.zip").unlink()
    with pytest.raises(ConfigError, match=r"keeps no code\.zip.*Give the sweep's command again"):
        write_bundle(sweep, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_an_own_package_that_went_from_the_environment_is_named(sweep: Path, tmp_path: Path) -> None:
    stage = next((tmp_path / "runs/stages").glob("student-*"))
    (stage / "stage.yaml").write_text("spec: {plugins: {path: [], allow: [birds]}}\ndata: {}\n")
    said = write_bundle(sweep, tmp_path / "out.zip")
    assert "left out: birds: no folder of plugins.path has it; install it" in said
