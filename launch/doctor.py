#!/usr/bin/env python
"""Examine this machine: versions, what is missing and what for, the folder of runs, the data sets."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from kdscale.doctor.findings import Finding

EPILOG = """\
Paste its output into bug reports. exit codes: 0 fit to train, 1 something that training needs is missing, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="launch/doctor.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--data", action="store_true", help="show the places where each data set was looked for")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="folder to try out (default: $KDSCALE_RUNS, else ./runs)"
    )
    parser.add_argument(
        "--cluster", default="local", metavar="local|slurm|PROFILE.yaml",
        help="what to examine (default: this machine); of a cluster also its scheduler and, by a job of one minute "
        "that writes below --runs, what a node sees",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Examine, print, and return the exit code."""
    options = parse(arguments)
    from kdscale.errors import ConfigError

    try:
        findings = _examine(options.runs, options.cluster)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from kdscale.doctor.findings import document, is_fit

    if options.json or importlib.util.find_spec("rich") is None:
        print(json.dumps(document(findings), indent=1))
    else:
        from rich.console import Console

        from kdscale.doctor.screen import draw

        draw(findings, Console(), whole_data=options.data)
    return 0 if is_fit(findings) else 1


def _examine(runs: Path | None, cluster: str) -> list[Finding]:
    from kdscale.doctor.data_sets import examine_data_sets
    from kdscale.doctor.folder import examine_folder
    from kdscale.doctor.software import examine_software

    place = runs or Path(os.environ.get("KDSCALE_RUNS") or "runs").expanduser()
    beyond = _cluster(cluster, place) if cluster not in ("local", "inline") else []
    return [*examine_software(), *examine_folder(place), *examine_data_sets(), *beyond]


def _cluster(cluster: str, place: Path) -> Iterable[Finding]:
    """Refuses what is no profile at once, and looks when it is asked."""
    from kdscale.jobs.slurm.profile import load_profile
    from kdscale.jobs.slurm.site import examine_cluster

    return examine_cluster(load_profile(cluster), place, lambda text: print(text, file=sys.stderr))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
