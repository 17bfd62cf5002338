"""The page of commands: what every script under launch/ says of itself with --help."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from docs.pages.markdown import fence

__all__ = ["help_of", "page", "scripts", "verbs"]

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
HEAD = """\
# Commands

What each command says of itself with `--help`. A stage is named in one way everywhere: by the beginning of its
digest (`3f21ab`), as `SWEEP:STAGE`, as `SWEEP:STAGE[VALUES]` with any values of axes that single it out, or by a
path; `latest` is the newest sweep. Every screen prints names that can be pasted. `--runs DIR`, else
`$KDSCALE_RUNS`, else `./runs`, says where results lie.

Exit codes: **0** done, **1** a stage failed or something is wrong, **2** usage or configuration: one line, and
nothing was written.
"""


def scripts() -> list[str]:
    """Names of the commands."""
    return sorted(path.stem for path in LAUNCH.glob("*.py"))


def help_of(script: str, *verb: str) -> str:
    """What `python launch/SCRIPT.py [VERB] --help` prints, at 100 columns."""
    arguments, said = [*verb, "--help"], io.StringIO()
    path = str(LAUNCH / f"{script}.py")
    plain = {"COLUMNS": "100", "NO_COLOR": "1"}
    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.dict(os.environ, plain))
        held.enter_context(mock.patch.object(sys, "argv", [f"{script}.py", *arguments]))
        held.enter_context(contextlib.redirect_stdout(said))
        held.enter_context(contextlib.suppress(SystemExit))
        runpy.run_path(path, run_name="__main__")
    return said.getvalue()


def verbs(script: str) -> list[str]:
    """The verbs of a command that has some."""
    found = re.search(r"^usage: \S+ \[-h\] (\w+(?:\|\w+)+) \.\.\.$", help_of(script), re.M)
    return found[1].split("|") if found else []


def page() -> str:
    """Every command and verb."""
    return "\n\n".join([HEAD, *(part for script in scripts() for part in _parts(script))]) + "\n"


def _parts(script: str) -> Iterator[str]:
    yield f"## {script} {{ #{script} }}"
    yield fence(help_of(script), "text")
    for verb in verbs(script):
        yield f"### {script} {verb} {{ #{script}-{verb} }}"
        yield fence(help_of(script, verb), "text")
