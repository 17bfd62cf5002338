"""The doctor's look at software: it agrees with pyproject.toml, and survives what it examines."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from kdscale.doctor import software
from kdscale.doctor.findings import Finding, document, is_fit
from kdscale.doctor.software import NEEDED, OPTIONAL, PYTHON, examine_software

tomllib = pytest.importorskip("tomllib")


@pytest.fixture
def project(root: Path) -> dict[str, object]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_what_is_needed_is_what_is_installed(project: dict[str, list[str]]) -> None:
    assert dict(text.split(">=") for text in project["dependencies"]) == NEEDED
    assert project["requires-python"] == f">={PYTHON[0]}.{PYTHON[1]}"


def test_each_optional_package_is_in_the_extra_that_is_said_to_bring_it(
    project: dict[str, dict[str, list[str]]],
) -> None:
    extras = project["optional-dependencies"]
    for name, (_, extra) in OPTIONAL.items():
        assert name in {re.split("[>=]", text)[0] for text in extras[extra]}


def without(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> dict[str, Finding]:
    """Examine a machine that has other versions; nothing is imported."""
    really = metadata.version

    def version(name: str) -> str:
        found = versions[name] if name in versions else really(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    answer = '{"version": "2.7.0", "gpus": [], "cuda": null, "bf16": []}'
    monkeypatch.setattr(software, "_child", lambda code: (0, answer, ""))
    return {finding.name: finding for finding in examine_software()}


def test_a_missing_or_old_need_makes_it_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = without(monkeypatch, {"numba": None, "pydantic": "2.8.9", "torch": "2.6.0+cpu"})
    assert {name for name, finding in found.items() if finding.stops} == {"numba", "pydantic"}
    assert "TOO OLD" in found["pydantic"].text
    assert ">= 0.60" in found["numba"].mend
    assert not is_fit(found.values())


def test_a_missing_extra_is_said_with_its_purpose_and_leaves_it_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = without(monkeypatch, {"ffcv": None, "deepspeed": None})
    assert "engine.name: deepspeed (./install.sh deepspeed)" in found["deepspeed"].mend
    assert found["ffcv"].text.startswith("MISSING")
    assert "the torch loader gives the same batches" in found["ffcv"].mend
    assert is_fit(found.values())
    assert document(list(found.values()))["ok"] is True


def test_versions_compare_by_number() -> None:
    assert software._numbers("2.13.0+cpu") > software._numbers("2.6")
    assert software._numbers("6.0.2") >= software._numbers("6")
    assert software._numbers("0.60.0rc1") >= software._numbers("0.60")


def test_an_import_that_kills_its_process_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    monkeypatch.setattr(software, "_ASK_TORCH", kill)
    finding = software._torch()
    assert finding.stops
    assert "ends the process with signal 4" in finding.text
    assert software._child("raise ImportError('libopencv_core.so: no such file')")[2].endswith("no such file")


def test_a_broken_ffcv_does_not_make_it_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_version", lambda name: "1.0.2")
    monkeypatch.setattr(software, "_ASK_FFCV", "raise ImportError('libturbojpeg.so.0: cannot open shared object file')")
    finding = software._ffcv()
    assert finding.state == "broken"
    assert "libturbojpeg.so.0" in finding.text
    assert is_fit([finding])


def test_torchvision_is_never_imported() -> None:
    assert "import torchvision" not in Path(software.__file__).read_text()
    assert "torchvision" not in software._ASK_TORCH + software._ASK_FFCV
