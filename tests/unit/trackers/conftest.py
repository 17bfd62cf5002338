from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKE = """
import sys
from pathlib import Path
from kdscale.trackers.destination import destination
from kdscale.trackers.mlflow import Server
root = Path(sys.argv[1])
Server(destination(root, None, "template"), "template")
"""


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose tables are made: that takes 3 s, copying it takes none."""
    root = tmp_path_factory.mktemp("migrated")
    subprocess.run([sys.executable, "-c", MAKE, str(root)], check=True, timeout=120, capture_output=True)
    return root / "mlflow.db"


@pytest.fixture
def runs(tmp_path: Path, migrated: Path) -> Path:
    """A runs folder with an empty database."""
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(migrated, root / "mlflow.db")
    return root
