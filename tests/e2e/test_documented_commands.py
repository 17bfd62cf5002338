"""Every command that the documentation shows as it stands is given, in the order of a reader, in one folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documented import ROOT, Fence, fences

FIRST = "docs/first-sweep.md"
"""Makes what the commands of other pages look at."""
FIGURE = re.compile(r"^$|\d|runs|Hidden at")
"""What differs from run to run, and between this machine and that of the page."""
SMALLER = {"data: {limit: 2000, limit_test: 1000}": "tracking: {uri: off}\ndata: {limit: 300, limit_test: 100}"}
"""What a page shows, and what takes less time; whether MLflow gets the figures is tested elsewhere."""
RUN = sorted(
    (fence for fence in fences() if fence.info == "bash" and fence.commands and fence.mark in ("", "exits 2")),
    key=lambda fence: fence.page != FIRST,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: kdscale's own scripts and configs, and the files that pages have him save."""
    made = tmp_path_factory.mktemp("reader")
    for name in ("launch", "configs", "slurm"):
        (made / name).symlink_to(ROOT / name)
    for fence in fences():
        if fence.title and not fence.title.startswith("kdscale/"):
            text = fence.text
            for shown, small in SMALLER.items():
                text = text.replace(shown, small)
            (made / fence.title).parent.mkdir(exist_ok=True)
            (made / fence.title).write_text(text)
    return made


def place(fence: Fence) -> str:
    return f"{fence.page}:{fence.line}"


@pytest.mark.parametrize("fence", RUN, ids=place)
def test_a_command_does_what_the_page_says(fence: Fence, folder: Path) -> None:
    heard = []
    for command in fence.commands:
        code, said = given(command, folder)
        assert code == (2 if fence.mark == "exits 2" else 0), f"{command}\n{said}"
        assert "Traceback" not in said
        assert said.strip(), f"{command} says nothing"
        heard += lines(said)
    assert not [line for line in lines(screen_of(fence)) if not FIGURE.search(line) and line not in heard]


def screen_of(fence: Fence) -> str:
    """What the page shows right behind the commands as what comes out."""
    behind = fences()[fences().index(fence) + 1]
    return behind.text if behind.info == "text" and behind.page == fence.page else ""


def lines(screen: str) -> list[str]:
    """Its lines, whatever the width of columns."""
    return [" ".join(line.split()) for line in screen.splitlines()]


def test_the_first_sweep_left_what_its_page_shows(folder: Path) -> None:
    [sweep] = (folder / "runs" / "sweeps").glob("mine-*")
    assert (sweep / "report.html").exists()
    assert len(list((folder / "runs" / "stages").glob("student-*/student.safetensors"))) == 2


def given(command: str, folder: Path) -> tuple[int, str]:
    """A command's exit code and what it said."""
    python, *words = shlex.split(command)
    assert python == "python", command
    own = {name: text for name, text in os.environ.items() if name not in ("KDSCALE_RUNS", "KDSCALE_REUSE")}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=own | {"COLUMNS": "100", "XDG_CONFIG_HOME": str(folder / "none")},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200,
    )  # fmt: skip
    return done.returncode, done.stdout
