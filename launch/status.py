#!/usr/bin/env python
"""How a sweep is: what needs you first, then what runs, waits and is done."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/status.py                    the sweep planned last, and a line for each other
  python launch/status.py quickstart --watch
  */15 * * * *  cd PROJECT && python launch/status.py --heal        (for cron: changes nothing that is in order)

exit codes: 0, 1 when a stage of the sweep failed, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/status.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name, name-digest, path (default: latest)")
    parser.add_argument("--watch", action="store_true", help="look again every 2 s until nothing moves any more")
    parser.add_argument(
        "--heal",
        action="store_true",
        help="mark stages whose process died as interrupted, submit again what SLURM lost (all sweeps without SWEEP)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
    options = parser.parse_args(arguments)
    if options.watch and options.json:
        parser.error("--watch shows a screen; it does not go with --json")
    return options


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    from rich.console import Console

    from kdscale.errors import KDScaleError
    from kdscale.jobs import status
    from kdscale.pipeline.artifacts import Root

    console = Console()
    try:
        root = Root.find(options.runs)
        if options.watch:
            return status.watch(options.sweep, root, console, healing=options.heal)
        return status.show(options.sweep, root, console, as_json=options.json, healing=options.heal)
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
