#!/usr/bin/env python
"""Recreate any step of a training stage in this process, and say what was not finite first: module, term, sample."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/replay.py "birds-bench:student[crd,mine96,s1]"              the step at which it failed
  python launch/replay.py birds:student --step 12034 --precision fp32       any step; once more in fp32
  python launch/replay.py birds:student --pdb                               a debugger where the first nan shows

It begins at the nearest checkpoint and needs no cluster: ranks take turns in this process. Nothing is written into the
runs; the stage may be running. exit codes: 0 replayed, 1 what it reads is not there, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/replay.py", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="digest, SWEEP:STAGE, SWEEP:STAGE[VALUES], path")
    parser.add_argument("--step", type=int, metavar="N", help="default: the step at which the stage failed")
    parser.add_argument("--pdb", action="store_true", help="stop where the first non-finite value shows")
    parser.add_argument("--anomaly", action="store_true", help="say which operation of the backward pass gives nan")
    parser.add_argument("--precision", choices=["fp32"], help="run the step once more in fp32, to compare")
    parser.add_argument("--tensors", action="store_true", help="keep the weights and gradients of the step, too")
    parser.add_argument("--out", type=Path, default=Path("replay"), metavar="DIR", help="default: ./replay")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Replay; returns the exit code."""
    options = parse(arguments)
    from kdscale.errors import ConfigError, KDScaleError
    from kdscale.jobs.replaying import Wish, replay_stage
    from kdscale.pipeline.artifacts import Root

    wish = Wish(
        options.name, options.step, out=options.out, precision=options.precision, anomaly=options.anomaly,
        tensors=options.tensors, pdb=options.pdb,
    )  # fmt: skip
    try:
        replay_stage(Root.find(options.runs), wish, print)
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
