#!/usr/bin/env python
"""Teacher caches: what one would cost and save, what there is, whether it is whole; free their space, take data out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/cache.py plan configs/quickstart.yaml seed=0,1,2
  python launch/cache.py info birds:student[crd,s1]
  python launch/cache.py verify 3f21ab --recompute 100
  python launch/cache.py gc --older-than 30d --dry-run
  python launch/cache.py export 3f21ab --format parquet --out answers.parquet --view 0

A cache is named by the beginning of its digest, by a path, or by a student that reads it or a stage that fills it
(SWEEP:STAGE[VALUES]). exit codes: 0 done, 1 something is wrong with a cache, 2 usage or configuration.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/cache.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="plan|info|verify|gc|export")
    texts = {
        "plan": "for each cache that a config's students would read: what it holds, costs and saves",
        "info": "what caches hold, how whole they are, who reads them",
        "verify": "compare every block with its checksum",
        "gc": "delete caches that nobody can read any more, that are old, or until the rest fits",
        "export": "decoded records as a table",
    }
    made = {
        verb: verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        for verb, text in texts.items()
    }
    for verb, command in made.items():
        command.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
        if verb in ("info", "verify"):
            command.add_argument("name", nargs="?", metavar="NAME", help="digest, SWEEP:STAGE or path; default: all")
        if verb in ("plan", "info", "verify"):
            command.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    _add_plan(made["plan"])
    _add_verify(made["verify"])
    _add_gc(made["gc"])
    _add_export(made["export"])
    return parser.parse_args(arguments)


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="set or sweep keys of the config")


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recompute", type=_positive, default=0, metavar="N", help="ask the live teacher for N random records again"
    )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="which records; default: 0")
    command.add_argument("--repair", action="store_true", help="make damaged blocks anew with the live teacher")


def _add_gc(command: argparse.ArgumentParser) -> None:
    command.add_argument("--older-than", metavar="AGE", help="30 (days), 30d, 12h ...: caches that nobody used since")
    command.add_argument("--larger-than", metavar="SIZE", help="500MB, 2TB ...: only caches that take more")
    command.add_argument(
        "--keep-bytes", metavar="SIZE", help="until the rest fits this: those first that are large and long unused"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    command.add_argument("--yes", action="store_true", help="do not ask")


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="digest, SWEEP:STAGE or path")
    command.add_argument("--format", choices=("parquet", "npz"), required=True)
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.add_argument("--view", type=int, metavar="V", help="one view; default: all")
    command.add_argument("--rows", metavar="A:B,C,...", help="rows of the train set, B left out; default: all")
    command.add_argument("--force", action="store_true", help="replace FILE")


def main(arguments: list[str]) -> int:
    """Run one verb; returns the exit code."""
    options = parse(arguments)
    from kdscale.jobs.cache_command import run_command

    return run_command(options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
