"""README says what is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import kdscale

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_table_of_methods_is_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "method_table.py"))["written"]
    assert written(README) == README, "run `make readme`"


def test_the_table_of_pipelines_and_their_graphs_are_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "pipeline_table.py"))
    assert made["written"](README) == README, "run `make readme`"
    drawn = {path.stem: path.read_text() for path in (ROOT / "docs" / "pipelines").glob("*.svg")}
    assert drawn == made["drawings"](), "run `make readme`"


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_script_it_names_exists() -> None:
    names = set(re.findall(r"launch/(\w+\.py)", README))
    assert names
    assert not [name for name in names if not (ROOT / "launch" / name).exists()]


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
    assert re.fullmatch(r"\d+\.\d+\.\d+", kdscale.__version__)
