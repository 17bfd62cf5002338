#!/usr/bin/env python
"""Stop stages, or all of a sweep, at a step boundary and with a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/cancel.py birds                        everything of this sweep that is not done
  python launch/cancel.py birds student 'init[crd]'    of it all students, and the init stages of the trials with crd
  python launch/cancel.py 'birds:student[crd,s1]' --reason "learning rate far too high"

On SLURM, jobs that wait are withdrawn from the queue; those that run save themselves and are not requeued.
What other stages take from a cancelled one is blocked. The sweep's own command takes cancelled stages up again,
from their checkpoints. exit codes: 0, 1 there was nothing to cancel, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/cancel.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a sweep or a stage: birds, SWEEP:STAGE[VALUES], digest, path")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="of a sweep only these: student, 'student[crd]'")
    parser.add_argument("--reason", default="cancelled by its user", metavar="TEXT", help="kept with the stage")
    parser.add_argument(
        "--wait", type=float, default=30.0, metavar="S", help="seconds to wait for the end (default: 30)"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    from kdscale.errors import KDScaleError, StageError
    from kdscale.jobs.cancel import cancel
    from kdscale.pipeline.artifacts import Root

    try:
        for line in cancel(options.name, Root.find(options.runs), options.reason, options.wait, options.stages):
            print(line, flush=True)
        return 0
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StageError) else 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
