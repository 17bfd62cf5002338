"""Options and markers for the whole suite. Imports nothing of kdscale: its import hook checks shapes and types."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.matrix import LONG

# No test may depend on the machine's speed, nor fail for one run in a hundred: `make test-long` draws afresh.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=not LONG, max_examples=200 if LONG else 30, database=None
)
hypothesis.settings.load_profile("suite")

# A shell ignores Ctrl-C for what it runs in the background, and every program started from there inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
MARKER_OF_FOLDER = {"parity": "parity", "distributed": "dist", "e2e": "e2e", "slurm": "slurm"}
COUNTER = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=ROOT / "tests" / "golden",
        metavar="DIR",
        help="folder of golden vectors, <method>_<set>.npz (default: tests/golden)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder, marker in MARKER_OF_FOLDER.items():
            if ROOT / "tests" / folder in item.path.parents:
                item.add_marker(marker)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's runs, configs and settings, and away from each other's."""
    for name in [n for n in os.environ if n.startswith(("KDSCALE_", "MLFLOW_"))]:
        if name not in {"KDSCALE_LONG", "KDSCALE_DATA"}:
            monkeypatch.delenv(name)
    place = tmp_path_factory.getbasetemp() / f"place-{next(COUNTER)}"
    monkeypatch.setenv("KDSCALE_RUNS", str(place / "runs"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
