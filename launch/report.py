"""What came out of a sweep: tables, the best by validation, several sweeps side by side, and report.html anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EPILOG = """\
examples:
  python launch/report.py                              the latest sweep, and its report.html anew
  python launch/report.py bench --best val/top1 --where "params_m<=5"
  python launch/report.py bench --where "method in (kd, crd) and seed==0" --format latex
  python launch/report.py bench --bibtex > used.bib    entries of losses, networks, data and kdscale, to cite
  python launch/report.py bench --bundle bench.zip     everything to run it again: launch/sweep.py bench.zip
  python launch/report.py first second                 several sweeps; keys that differ become columns

Figures in --where and --best are those of results.json (shares in 0..1), further params_m, flops_m, flops_g,
val/top1, val/nll, val/ece (last epoch) in --best. Choosing goes by validation, the figures shown are test.
exit codes: 0 done, 2 usage.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/report.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sweeps", nargs="*", metavar="SWEEP", help="name, digest prefix or folder (default: the latest)"
    )
    parser.add_argument("--best", metavar="METRIC", help="rank by a validation figure, e.g. val/top1")
    parser.add_argument("--where", metavar="EXPR", help='keep trials that meet a condition, e.g. "params_m<=5"')
    parser.add_argument(
        "--over", metavar="AXIS,...", help="average over these axes (default: seed; none: over nothing)"
    )
    parser.add_argument(
        "--format", choices=["table", "md", "latex", "html"], default="table", help="how tables are written"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument(
        "--bibtex", action="store_true", help="BibTeX entries of everything that was used, and kdscale's"
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE.zip",
        help="config, code, versions, hashes, results and logs in one file, which launch/sweep.py FILE.zip runs again",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="where results lie (default: $KDSCALE_RUNS, else ./runs)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(arguments)
    from kdscale.errors import ConfigError, KDScaleError
    from kdscale.pipeline.artifacts import Root, SweepFolder
    from kdscale.pipeline.names import resolve
    from kdscale.report.command import Request, run_report

    try:
        root = Root.find(options.runs)
        found = [resolve(name, root) for name in options.sweeps or ["latest"]]
        for name, folder in zip(options.sweeps, found, strict=False):
            if not isinstance(folder, SweepFolder):
                raise ConfigError(
                    f"{name} is a stage; a report is about a sweep (`python launch/runs.py ls` lists them)"
                )
        over = None if options.over is None else [axis for axis in options.over.split(",") if axis not in ("", "none")]
        paths = [folder.path for folder in found]
        run_report(
            Request(
                paths, options.best, options.where, over, options.format, options.json, options.bibtex, options.bundle
            )
        )
    except KDScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
