#!/usr/bin/env python
"""Write a finished network as a folder that needs no kdscale, and check every file of it against the network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/export.py "birds-bench:student[crd,s0]"
  python launch/export.py birds:teacher --format onnx --weights best --int8
  python exports/student-1f3c/use_me.py bird.png

Preprocessing is inside: every file takes uint8 images. Each is compared with the network on 1,000 test images, in
batches of 1, 7 and 64; where one differs nothing is written. exit codes: 0, 1 the stage is not done or a file differs,
2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/export.py", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="digest, SWEEP:STAGE, SWEEP:STAGE[VALUES], path")
    parser.add_argument(
        "--format", default="safetensors,pt2,onnx", metavar="LIST", help="of safetensors, pt2, onnx (default: all)"
    )
    parser.add_argument(
        "--weights", default="last", metavar="WHICH", help="last, best or another snapshot of the stage (default: last)"
    )
    parser.add_argument("--int8", action="store_true", help="the ONNX file in int8 as well, with what that costs")
    parser.add_argument("--out", type=Path, default=Path("exports"), metavar="DIR", help="default: ./exports")
    parser.add_argument("--force", action="store_true", help="write a folder that is there anew")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="default: $KDSCALE_RUNS, else ./runs")
    options = parser.parse_args(arguments)
    options.format = [one.strip() for one in options.format.split(",")]
    unknown = [one for one in options.format if one not in ("safetensors", "pt2", "onnx")]
    if unknown:
        parser.error(f"--format {', '.join(unknown)}: there are safetensors, pt2, onnx")
    if options.int8 and "onnx" not in options.format:
        parser.error("--int8 is of the ONNX file: add onnx to --format")
    return options


def main(arguments: list[str]) -> int:
    """Export; returns the exit code."""
    options = parse(arguments)
    from kdscale.errors import KDScaleError, StageError
    from kdscale.jobs.exporting import Wish, export
    from kdscale.pipeline.artifacts import Root

    wish = Wish(
        options.name, options.format, selector=options.weights, out=options.out, int8=options.int8, force=options.force
    )
    try:
        export(Root.find(options.runs), wish, print)
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StageError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
