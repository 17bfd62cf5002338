from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.errors import ConfigError
from kdscale.trackers.destination import destination, root_id


def test_the_default_is_a_database_in_the_runs_folder(tmp_path: Path) -> None:
    to = destination(tmp_path, None, "kdscale")
    assert to is not None
    assert to.database == tmp_path / "mlflow.db"
    assert to.artifacts == tmp_path / "mlartifacts"
    assert to.lock.parent == tmp_path


def test_off_is_nowhere(tmp_path: Path) -> None:
    assert destination(tmp_path, "off", "kdscale") is None


def test_a_relative_file_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    to = destination(tmp_path / "runs", "sqlite:///lab.db", "kdscale")
    assert to is not None
    assert to.uri == f"sqlite:///{tmp_path / 'lab.db'}"
    assert to.artifacts == tmp_path / "lab-artifacts"
    assert to.lock.parent == tmp_path, "whoever shares the database shares the lock"


def test_a_server_keeps_its_own_artifacts(tmp_path: Path) -> None:
    to = destination(tmp_path, "https://mlflow.lab/", "kdscale")
    assert to is not None
    assert (to.uri, to.database, to.artifacts) == ("https://mlflow.lab", None, None)


@pytest.mark.parametrize("uri", ["https://me:s3cret@mlflow.lab", "http://token@mlflow.lab:5000"])
def test_credentials_in_the_address_are_refused_without_repeating_them(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_TOKEN") as caught:
        destination(tmp_path, uri, "kdscale")
    assert "s3cret" not in str(caught.value)
    assert "token@" not in str(caught.value)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "sqlite://", "sqlite:///", "https://", "databricks"])
def test_what_mlflow_cannot_use_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        destination(tmp_path, uri, "kdscale")


def test_destinations_are_told_apart(tmp_path: Path) -> None:
    known = [
        destination(tmp_path, uri, name)
        for uri, name in ((None, "a"), (None, "b"), ("http://x", "a"), ("http://x/", "a"))
    ]
    ids = [to.id for to in known if to is not None]
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]


def test_a_runs_folder_keeps_its_identity_when_it_moves(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    first = root_id(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert root_id(tmp_path / "moved") == first
    (tmp_path / "other").mkdir()
    assert root_id(tmp_path / "other") != first
