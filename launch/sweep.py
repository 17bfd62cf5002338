"""Expand a sweep, plan it, and run it on this machine or on a cluster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/sweep.py configs/quickstart.yaml
  python launch/sweep.py configs/quickstart.yaml seed=range(3) train.lr=0.05,0.1 --dry-run
  python launch/sweep.py mine.yaml stages.student.losses.kd.temperature=2,4 --explain
  python launch/sweep.py bench.zip --dry-run                a bundle of report.py --bundle: what differs here, then run

KEY=VALUE sets a key, KEY=A,B sweeps it, KEY=range(N) too; KEY=[A,B] is a list.
exit codes: 0 done, 1 a stage failed or was stopped, 2 usage or configuration, 130 stopped with nothing running.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config",
        nargs="?",
        type=str,
        metavar="CONFIG",
        help="YAML file, kdscale:NAME of a shipped one, or a bundle (.zip)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="set or sweep keys of the config")
    parser.add_argument(
        "--cluster", default="local", metavar="local|inline|slurm|PROFILE.yaml",
        help="worker processes on this machine (default), in this process (for debuggers), or SLURM",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where results go (default: $KDSCALE_RUNS, else ./runs)"
    )
    shows = parser.add_argument_group("look, and run nothing")
    shows.add_argument("--dry-run", action="store_true", help="plan, check and cost everything")
    shows.add_argument("--explain", action="store_true", help="why each stage is or is not reused")
    shows.add_argument("--show-config", action="store_true", help="every resolved value and what set it")
    shows.add_argument("--schema", action="store_true", help="JSON Schema of a config, for editors")
    shows.add_argument(
        "--list", nargs="+", metavar=("KIND", "NAME"),
        help="losses, modifiers, strategies, models, datasets or metrics; losses NAME; taps MODEL [key=value ...]; "
        "template loss|modifier|strategy|model: a working file to edit",
    )  # fmt: skip
    shows.add_argument("--smoke", action="store_true", help="two real steps of every distinct stage, then stop")
    runs = parser.add_argument_group("run")
    runs.add_argument(
        "--prepare", action="store_true",
        help="before the first run, on the login node: fetch data, create the tracking runs, let a job of one minute "
        "look whether nodes see everything; trains nothing (slurm/README.md, Offline)",
    )  # fmt: skip
    runs.add_argument("--fresh", action="append", default=[], metavar="STAGE", help="make a finished stage anew")
    runs.add_argument(
        "--retry-failed", action="store_true", help="run stages again that failed by an error of their own"
    )
    runs.add_argument(
        "--profile", action="store_true", help="measure where the time of each stage's steps goes; changes no number"
    )
    runs.add_argument("--detach", action="store_true", help="submit to SLURM and leave; else the terminal follows")
    runs.add_argument("--yes", action="store_true", help="do not ask before a large sweep (above 100 jobs or 10 GB)")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    try:
        from kdscale.jobs.command import run_command

        return run_command(options, arguments)
    except KeyboardInterrupt:  # while nothing runs: before the first stage, or after the last
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
