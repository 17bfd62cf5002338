"""Peak memory of a worker above its imports against the bare loop's, and what the imports take above torch's.

    python -m benchmarks.memory [--rounds 3] [--quick]

Fresh processes each time. The peak is the kernel's own (VmHWM), set back to the resident memory once everything is
imported; training runs past a checkpoint. The largest of the ranks counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import REPOSITORY, Row, row, write
from benchmarks.stages import WORLD, Case, make_case
from benchmarks.turns import Workers

GOAL, IMPORTS_GOAL_MB = 1.15, 300
STEPS, CHECKPOINT = 150, ("train.checkpoint_every_steps=100",)
"""Long enough to have touched every page of the data and to have written a checkpoint."""
QUICK_STEPS = 60
IMPORTS = """
from benchmarks.turns import status_kb
import torch
before = status_kb("VmRSS")
from kdscale.jobs.warm import _import_everything
_import_everything()
print(status_kb("VmRSS") - before)
"""


def above_imports_mb(command: list[str]) -> float:
    """Peak memory that training adds to the imports, in MB, on the rank that takes most."""
    workers = Workers(command, WORLD)
    try:
        workers.turn()
        return max(entry["peak_kb"] - entry["imports_kb"] for entry in workers.answers) / 1024
    finally:
        workers.close()


def imports_mb() -> float:
    """Memory that everything a worker imports takes above torch, in MB, in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return int(done.stdout) / 1024


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Peaks and ratios of one case, in turns."""
    peaks: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        peaks["ours"].append(above_imports_mb(case.ours(steps)))
        peaks["bare"].append(above_imports_mb(case.bare(steps)))
    ratios = [ours / bare for ours, bare in zip(peaks["ours"], peaks["bare"], strict=True)]
    return {"ratios": ratios, "peak_mb_above_imports": peaks, "precision": case.precision}


def run(*, quick: bool = False, rounds: int = 3, cases: tuple[str, ...] = ("ce", "kd")) -> list[Row]:
    """Measure all cases, keep the figures, return their rows."""
    rounds = 1 if quick else rounds
    steps = QUICK_STEPS if quick else STEPS
    imports = [imports_mb() for _ in range(rounds)]
    measured = {}
    for name in cases:
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = measure(make_case(name, Path(folder), CHECKPOINT), rounds, steps)
    rows = [row(f"memory {name}: kdscale to bare DDP", m["ratios"], "x", "<=", GOAL) for name, m in measured.items()]
    rows.append(row("memory of imports above torch's", imports, "MB", "<=", IMPORTS_GOAL_MB))
    write("memory", rows, quick=quick, cases=measured, imports_mb_above_torch=imports, processes=WORLD, steps=steps)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps, once: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)


if __name__ == "__main__":
    main()
