"""The site builds without a warning, and is read without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale import plugins
from tests.documented import ROOT

FROM_ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=\"?https?:|<link[^>]+rel=\"?(?:stylesheet|preconnect|preload)[^>]+href=\"?https?:"
    r"|<link[^>]+href=\"?https?:[^>]+rel=\"?(?:stylesheet|preconnect|preload)|@import[^;]+https?:|url\([\"']?https?:"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=200, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 50
    assert not [page.name for page in pages if FROM_ELSEWHERE.search(page.read_text())]


def test_every_method_has_a_page_with_its_formula(site: Path) -> None:
    for kind in ("losses", "modifiers"):
        for name in plugins.available(kind):
            text = (site / "methods" / kind / f"{name}.html").read_text()
            assert "<math" in text
            assert 'id="options"' in text


def test_search_needs_no_server(site: Path) -> None:
    assert (site / "search" / "search_index.js").stat().st_size > 10_000
    assert (site / "iframe-worker.js").exists()


def test_pages_say_what_commands_need(site: Path) -> None:
    assert "Needs a cluster" in (site / "install.html").read_text()
    assert "array_parallel" in (site / "install.html").read_text(), "the table of a profile's keys"
