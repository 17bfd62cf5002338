"""What Python asks the launcher for is what the command line could have said."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

import pytest

from kdscale.library import launcher

SWEEP = Path(__file__).resolve().parents[3] / "launch" / "sweep.py"


@pytest.mark.parametrize(
    "flags",
    [{}, {"fresh": ["teacher", "student"], "retry_failed": True, "profile": True, "yes": True}],
    ids=["few", "all"],
)
def test_its_options_are_those_of_the_command_it_names(flags: dict[str, object]) -> None:
    options = launcher.options_of("a b.yaml", ["seed=0,1"], "inline", Path("here"), **flags)
    parse = runpy.run_path(str(SWEEP))["parse"]
    program, script, *arguments = shlex.split(launcher.command_of(options))
    assert (program, script) == ("python", "launch/sweep.py")
    said = vars(parse(arguments))
    unset = {name: value or None for name, value in vars(options).items()}
    assert {name: value or None for name, value in said.items()} == unset
