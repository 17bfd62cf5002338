from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_report_runs import bench, takd


@pytest.fixture(scope="session")
def finished_bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Methods x students x seeds, all done; only to be read."""
    return bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def finished_takd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher, assistant, student, all done; only to be read."""
    return takd(tmp_path_factory.mktemp("takd"))
