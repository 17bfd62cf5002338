#!/usr/bin/env python
"""What lies under a run root, what takes space, and keeping it in order."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/runs.py du
  python launch/runs.py gc --keep-students --older 14d --dry-run
  python launch/runs.py pin birds:teacher --reason "the lab's teacher"
  python launch/runs.py rm 'birds:student[crd,s1]' --reason "trained on the wrong split" --dependants
  python launch/runs.py why birds:teacher

gc never touches what runs, what is pinned, or what they were made from. Without --older it frees checkpoints of
done stages (their students stay), what rm took out, and what killed writers left. With --older it looks only at
what nothing touched for so long, but then at whole stages too, unless a live sweep, a sweep planned since then, or
a stage that stays needs them. exit codes: 0, 1 something could not be done, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/runs.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="ls|du|gc|pin|rm|why")
    texts = {
        "ls": "list sweeps, or stages",
        "du": "what takes space, by kind",
        "gc": "delete what nobody needs",
        "pin": "keep a stage, and what it was made from, from gc and rm",
        "rm": "mark a stage invalid: no plan finds it any more",
        "why": "where a stage comes from, who uses it, why it was or was not reused",
    }
    made = {
        verb: verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        for verb, text in texts.items()
    }
    for verb, command in made.items():
        command.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
        if verb in ("pin", "rm", "why"):
            command.add_argument("name", metavar="NAME", help="digest, SWEEP, SWEEP:STAGE, SWEEP:STAGE[VALUES], path")
        if verb in ("ls", "du"):
            command.add_argument("--json", action="store_true", help="print JSON (schema 1)")
    made["ls"].add_argument("name", nargs="?", metavar="SWEEP", help="list the stages of this sweep")
    made["ls"].add_argument("--stages", action="store_true", help="list all stages")
    made["gc"].add_argument(
        "--older", metavar="AGE", help="14d, 12h ...: whole stages that nothing touched for so long"
    )
    made["gc"].add_argument(
        "--keep-students", action="store_true", help="of old stages keep finished networks and records"
    )
    made["gc"].add_argument("--dry-run", action="store_true", help="say what would be deleted")
    made["gc"].add_argument("--yes", action="store_true", help="do not ask before deleting finished networks")
    made["pin"].add_argument("--reason", default="", metavar="TEXT", help="kept with it")
    made["pin"].add_argument("--off", action="store_true", help="unpin")
    made["rm"].add_argument("--reason", required=True, metavar="TEXT", help="why it is invalid; kept with it")
    made["rm"].add_argument("--dependants", action="store_true", help="what was made from it, too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run one verb; returns the exit code."""
    options = parse(arguments)
    from rich.console import Console

    from kdscale.errors import KDScaleError, StageError
    from kdscale.jobs import housekeeping as verbs
    from kdscale.pipeline.artifacts import Root

    console = Console()
    try:
        root = Root.find(options.runs)
        if options.verb == "ls":
            return verbs.ls(root, options.name, console, stages=options.stages, as_json=options.json)
        if options.verb == "du":
            return verbs.du(root, console, as_json=options.json)
        if options.verb == "gc":
            return verbs.gc(
                root, console, older=options.older, keep_students=options.keep_students, dry_run=options.dry_run,
                yes=options.yes,
            )  # fmt: skip
        if options.verb == "pin":
            return verbs.pin(root, options.name, console, reason=options.reason, off=options.off)
        if options.verb == "rm":
            return verbs.rm(root, options.name, console, reason=options.reason, dependants=options.dependants)
        return verbs.explain(root, options.name, console)
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StageError) else 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
