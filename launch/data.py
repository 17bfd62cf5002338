#!/usr/bin/env python
"""Convert the data that a config reads, check it, or look at what training will see of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/data.py check fashion_mnist
  python launch/data.py show configs/quickstart.yaml data.augment.cutout=8 --out views.png
  python launch/data.py write configs/quickstart.yaml      (on a node with many cores, before the sweep)

CONFIG is a YAML file; NAME a data set (python launch/sweep.py --list datasets). KEY=VALUE sets keys of the config.
exit codes: 0 done, 1 the data is missing or damaged, 2 usage or configuration.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/data.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="write|check|show")
    texts = {
        "write": "convert it for the loader, where sweeps look for it",
        "check": "find it, verify every checksum, count its labels, list its conversions",
        "show": "draw augmented views into a PNG",
    }
    for verb, text in texts.items():
        command = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("target", metavar="CONFIG|NAME", help="YAML file, or name of a data set")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="set keys of the config")
        command.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
        if verb == "show":
            command.add_argument("--stage", help="whose view of the data (default: the first stage)")
            command.add_argument("--out", type=Path, metavar="FILE.png", help="default: views-NAME.png")
            command.add_argument("--samples", type=_count, default=10, metavar="N", help="default: 10")
            command.add_argument("--views", type=_count, default=8, metavar="N", help="views of each; default: 8")
            command.add_argument("--first-view", type=int, default=0, metavar="V", help="default: 0")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run one verb; returns the exit code."""
    options = parse(arguments)
    from rich.console import Console

    from kdscale.errors import DataError, KDScaleError
    from kdscale.jobs import data_command as command

    console = Console()
    try:
        if options.verb == "write":
            return command.write(options.target, options.overrides, options.runs, console)
        if options.verb == "check":
            return command.check(options.target, options.overrides, options.runs, console)
        views = range(options.first_view, options.first_view + options.views)
        picked = command.pick(options.target, options.overrides, options.stage)
        return command.show(picked, options.out, options.samples, views, console)
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DataError) else 2


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 200:
        raise argparse.ArgumentTypeError(f"{text}: from 1 to 200")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
