"""Real teacher caches, made once; each test has a copy of its own to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.jobs.cache_places import CachePlace, cache_named
from kdscale.pipeline.artifacts import Root
from tests.small_caches import run_small_sweep


@pytest.fixture(scope="session")
def _filled(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return run_small_sweep(tmp_path_factory.mktemp("caches"))


@pytest.fixture
def caches(_filled: Root, tmp_path: Path) -> Root:
    """A root with a finished sweep `small` and three caches: of students exact, sparse and mixed."""
    shutil.copytree(_filled.path, tmp_path / "runs", symlinks=True)
    return Root(tmp_path / "runs")


@pytest.fixture
def place(caches: Root) -> Callable[[str], CachePlace]:
    """The cache of a student."""
    return lambda student: cache_named(f"small:{student}", caches)
