#!/usr/bin/env python
"""Hold your own loss, modifier, strategy or model to what kdscale's keep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/check.py birds.losses.myloss               the class that birds/losses/myloss.py offers
  python launch/check.py birds.losses:MyLoss margin=0.5    named as in a config, with an option
  python launch/check.py birds.nets:TinyNet width=48 size=64 classes=200

KEY=VALUE sets an option of the class before it; of a model also size, channels and classes of
the images, and per_pixel=true where it answers with a class for each pixel.
Nothing is written. To begin one: python launch/sweep.py --list template loss > birds/losses/myloss.py
exit codes: 0 the contract is kept, 1 a promise is broken, 2 usage: no such module or class.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/check.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="package.module or package.module:Class; KEY=VALUE after it sets an option",
    )
    parser.add_argument(
        "--path", type=Path, action="append", metavar="DIR",
        help="where the package lies, as plugins.path says in a config (default: the working directory)",
    )  # fmt: skip
    options = parser.parse_intermixed_args(arguments)
    if "=" in options.names[0]:
        parser.error(f"{options.names[0]}: of which class? say package.module:Class before it")
    return options


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    try:
        from kdscale.errors import KDScaleError
        from kdscale.jobs.checking import check

        try:
            return check(options.names, options.path or [Path()])
        except KDScaleError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
