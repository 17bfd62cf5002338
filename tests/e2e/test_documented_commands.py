"""Every command that the documentation shows as it stands is given, in the order of a reader, in one folder."""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shlex
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


def given(command: str, folder: Path) -> tuple[int | None, str]:
    """A command's exit code and what it said. A fork of this process gives it, which has torch imported already."""
    heard = folder / "said.txt"
    process = multiprocessing.get_context("fork").Process(target=_as_typed, args=(shlex.split(command), folder, heard))
    process.start()
    process.join(200)
    assert process.exitcode is not None, f"{command} does not end"
    return process.exitcode, heard.read_text()


def _as_typed(words: list[str], folder: Path, heard: Path) -> None:
    python, script, *arguments = words
    assert python == "python", words
    os.setsid()
    os.chdir(folder)
    os.environ.update(COLUMNS="100", XDG_CONFIG_HOME=str(folder / "none"))
    for variable in ("KDSCALE_RUNS", "KDSCALE_REUSE"):
        os.environ.pop(variable, None)
    with heard.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    sys.argv = [script, *arguments]
    code: object = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
