"""A whole kdscale training step against a bare hand-written DDP loop: images a second, in turns.

    python -m benchmarks.step [--rounds 5] [--quick]

kdscale runs with everything on: loader and store, metrics, checkpoints at the default interval, state file, heartbeat.
A round is 500 steps of each, in twenty turns of a few seconds, and holds one checkpoint; its ratio is of the seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, row, write
from benchmarks.stages import WORLD, make_case
from benchmarks.turns import Workers

GOAL = 0.97
BATCH = 128
ROUND_STEPS, TURNS = 500, 20
"""A round is as long as the default distance of checkpoints, so that each holds one."""
QUICK = (100, 4)


def measure(case: Any, rounds: int, steps: int, turns: int) -> dict[str, Any]:
    """Rates and ratios of one case."""
    each = steps // turns
    sides = {"ours": Workers(case.ours(each), WORLD), "bare": Workers(case.bare(each), WORLD)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for workers in sides.values():  # warms up
            workers.turn()
        for number in range(rounds):
            spent = dict.fromkeys(sides, 0.0)
            for turn in range(turns):
                order = list(sides) if (number + turn) % 2 == 0 else list(sides)[::-1]
                for name in order:
                    spent[name] += sides[name].turn()
            for name, value in spent.items():
                seconds[name].append(value)
    finally:
        for workers in sides.values():
            workers.close()
    ratios = [bare / ours for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
    rates = {name: [steps * BATCH / value for value in values] for name, values in seconds.items()}
    return {
        "ratio": statistics.median(ratios), "ratios": ratios, "precision": case.precision,
        "images_per_s": {name: {"median": statistics.median(v), "all": v} for name, v in rates.items()},
    }  # fmt: skip


def run(*, quick: bool = False, rounds: int = 5, cases: tuple[str, ...] = ("ce", "kd")) -> list[Row]:
    """Measure all cases, keep the figures, return their rows."""
    steps, turns = QUICK if quick else (ROUND_STEPS, TURNS)
    rounds = 3 if quick else rounds
    measured = {}
    for name in cases:
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = measure(make_case(name, Path(folder)), rounds, steps, turns)
    rows = [row(f"step {name}: kdscale to bare DDP", m["ratios"], "x", ">=", GOAL) for name, m in measured.items()]
    write("step", rows, quick=quick, cases=measured, batch_size=BATCH, processes=WORLD, steps_a_round=steps)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="short rounds without checkpoints: for trying out only")
    parser.add_argument("--case", choices=("ce", "kd"), action="append", help="measure this one alone")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds, cases=tuple(chosen.case or ("ce", "kd"))):
        print(entry.line)


if __name__ == "__main__":
    main()
