"""Run the benchmarks and show what they reach: `make bench`.

    python -m benchmarks.run [step memory startup loader resume submit losses train pack scaling footprint teachers]
                            [--quick]

Each leaves its figures as benchmarks/results/NAME.json, and all are drawn in benchmarks/results/index.html. Exit code 1
when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from benchmarks import footprint, losses, memory, pack, resume, scaling, startup, step, submit, teachers, train
from benchmarks.figures import REPOSITORY, RESULTS, Row
from benchmarks.page import write_page


def loader(*, quick: bool = False) -> list[Row]:
    """The loader's own script, in a process of its own."""
    rounds = "3" if quick else "9"
    subprocess.run(
        [sys.executable, "-W", "ignore", "benchmarks/loader.py", "--rounds", rounds],
        cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found = json.loads((RESULTS / "loader.json").read_text())
    rates = {name: found["images_per_s"][name]["all"] for name in ("ffcv", "bare")}
    ratios = [ours / bare for ours, bare in zip(rates["ffcv"], rates["bare"], strict=True)]
    value = found["ratios"]["ffcv_to_bare_crop_flip"]
    return [Row("loader: kdscale to bare FFCV", value, "x", ">=", found["goal"], (min(ratios), max(ratios)))]


BENCHMARKS = {
    "step": step.run, "memory": memory.run, "startup": startup.run, "loader": loader, "resume": resume.run,
    "submit": submit.run, "losses": losses.run, "train": train.run, "pack": pack.run,
    "scaling": scaling.run, "footprint": footprint.run, "teachers": teachers.run,
}  # fmt: skip


def table(rows: list[Row], *, quick: bool) -> Table:
    """All figures and their targets."""
    title = "benchmarks" + (" (quick: for trying out only)" if quick else "")
    shown = Table(title=title, box=None, title_justify="left", header_style="dim", padding=(0, 2, 0, 0))
    for column in ("what", "median", "least", "most", "target", ""):
        shown.add_column(column, justify="left" if column in ("what", "") else "right", no_wrap=True)
    for row in rows:
        low, high = row.spread
        verdict = "[green]ok[/]" if row.met else "[bold red]MISSED[/]"
        figures = (f"{row.value:.2f} {row.unit}", f"{low:.2f}", f"{high:.2f}", f"{row.sense} {row.target:g}")
        shown.add_row(row.what, *figures, verdict)
    return shown


def main(arguments: list[str]) -> int:
    """Run what is named, all by default; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="short runs, whose figures say that they are")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)} (there are: {', '.join(BENCHMARKS)})")
    rows: list[Row] = []
    for name in chosen.names or BENCHMARKS:
        print(f"running {name} ...", file=sys.stderr)
        rows += BENCHMARKS[name](quick=chosen.quick)
    Console().print(table(rows, quick=chosen.quick))
    print(f"page    {write_page()}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
