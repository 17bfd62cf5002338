#!/usr/bin/env python
"""Print what the processes of a stage wrote, or where they stand right now."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/logs.py quickstart:student -f
  python launch/logs.py 'birds:student[crd,s1]' --attempt 1 --rank 5
  python launch/logs.py birds:teacher --job            (it died before a rank wrote? what sbatch and srun said)
  python launch/logs.py latest:teacher --stacks        (it hangs? each thread of each rank, as a Python traceback)
  python launch/logs.py latest:student --profile 20    (it is slow? what each part of a step takes)

exit codes: 0, 1 no such log or nothing to ask, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/logs.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="a stage: digest, SWEEP:STAGE, SWEEP:STAGE[VALUES], path")
    parser.add_argument("-f", "--follow", action="store_true", help="print what is appended, until the stage rests")
    parser.add_argument("-n", "--lines", type=int, default=200, metavar="N", help="last lines; 0: all (default: 200)")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="which process (default: 0)")
    parser.add_argument("--attempt", type=int, metavar="N", help="which attempt (default: the newest)")
    parser.add_argument("--job", action="store_true", help="what its SLURM job wrote itself, around its ranks' logs")
    parser.add_argument(
        "--stacks", action="store_true", help="have all live ranks print their Python stacks, on whatever node"
    )
    parser.add_argument(
        "--profile", type=steps, metavar="N", help="measure where the time of the next N steps goes, while it runs"
    )
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
    return parser.parse_args(arguments)


def steps(text: str) -> int:
    """A number of steps."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    from kdscale.errors import KDScaleError, StageError
    from kdscale.jobs import logs
    from kdscale.jobs.profile_view import profile
    from kdscale.jobs.stacks import stacks
    from kdscale.pipeline.artifacts import Root

    try:
        folder = logs.stage_of(options.name, Root.find(options.runs))
        if options.stacks:
            stacks(folder, sys.stdout)
            return 0
        if options.profile:
            profile(folder, options.profile)
            return 0
        log, position = logs.show(folder, options.rank, options.attempt, options.lines, sys.stdout, of_job=options.job)
        if options.follow:
            logs.follow(folder, log, position, sys.stdout, newer=options.attempt is None)
        return 0
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StageError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough; nothing may be flushed into the closed pipe any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
