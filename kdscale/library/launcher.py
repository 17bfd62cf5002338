"""The launcher of a run that Python began, in a process of its own: `python -m kdscale.library.launcher OPTIONS`.

It goes on when the notebook's kernel is restarted, as a command under nohup would; its words go to a log.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["command_of", "options_of", "start"]

_RUNS: dict[str, Any] = {"fresh": [], "retry_failed": False, "profile": False, "yes": False}
_LOOKS = ("dry_run", "explain", "show_config", "schema", "list", "smoke", "prepare", "detach")
"""Options of the command line that only look or leave: none of them runs here."""


def options_of(config: str, overrides: Sequence[str], cluster: str, runs: Path, **flags: Any) -> argparse.Namespace:
    """The options of launch/sweep.py that run a config; `flags` are those of _RUNS that are not as by default."""
    looks = dict.fromkeys(_LOOKS, False)
    return argparse.Namespace(
        config=config, overrides=list(overrides), cluster=cluster, runs=runs, **(looks | _RUNS | flags)
    )


def _arguments(options: argparse.Namespace) -> list[str]:
    flags = [f"--{name.replace('_', '-')}" for name in _RUNS if name != "fresh" and getattr(options, name)]
    fresh = [word for name in options.fresh for word in ("--fresh", name)]
    place = ["--cluster", options.cluster, "--runs", str(options.runs)]
    return [options.config, *options.overrides, *place, *fresh, *flags]


def command_of(options: argparse.Namespace) -> str:
    """The command line that does the same."""
    return "python launch/sweep.py " + shlex.join(_arguments(options))


def start(options: argparse.Namespace, log: Path) -> subprocess.Popen[bytes]:
    """Start the launcher; what it prints is appended to `log`."""
    from kdscale import __file__ as package

    place = str(Path(package).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))}
    said: dict[str, Any] = vars(options) | {"runs": str(options.runs)}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "kdscale.library.launcher", json.dumps(said)], env=environment,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,  # a notebook's interrupt is for the cell that waits
        )  # fmt: skip


def main(document: str) -> int:
    """Run the command; returns its exit code."""
    from kdscale.jobs.command import run_command

    said = json.loads(document)
    options = argparse.Namespace(**(said | {"runs": Path(said["runs"])}))
    return run_command(options, _arguments(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
