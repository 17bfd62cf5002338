"""More processes: efficiency beside bare DistributedDataParallel's, and what the ranks of a step say to each other.

    python -m benchmarks.scaling [--rounds 5] [--quick]

The teacher of configs/quickstart.yaml, 64 images a process. Efficiency is the rate of two processes over twice that of
one; its row is ours over the bare loop's, in the same round. Four and eight processes are more than a small machine has
cores: they are not timed, but what they say is counted, in a turn of its own under torch's profiler, beside bare's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import RESULTS, Row, row, write
from benchmarks.stages import Case, make_case
from benchmarks.turns import COUNT, Workers

WORLDS = (1, 2, 4, 8)
TIMED = (1, 2)
BATCH = 64
GOAL, EXTRA_CALLS_GOAL, BYTES_GOAL = 0.97, 0.5, 1.01
STEPS, QUICK_STEPS = 60, 10
COUNTED_STEPS = 12
"""Three agreements of the ranks; what metrics say once in fifty steps is left out. Longer, a profiler takes minutes."""


def sides_of(case: Case, steps: int, world: int, stack: ExitStack) -> dict[str, Workers]:
    """Workers of both sides, ended when the stack is."""
    found = {"ours": Workers(case.ours(steps), world), "bare": Workers(case.bare(steps), world)}
    for side in found.values():
        stack.callback(side.close)
        side.turn()  # warms up
    return found


def timed(cases: dict[int, Case], rounds: int, steps: int) -> dict[int, dict[str, list[float]]]:
    """Images a second of one and of two processes, all in turns."""
    with ExitStack() as stack:
        sides = {world: sides_of(cases[world], steps, world, stack) for world in TIMED}
        rates: dict[int, dict[str, list[float]]] = {world: {"ours": [], "bare": []} for world in TIMED}
        for number in range(rounds):
            for world in TIMED:
                for name in ("ours", "bare")[:: 1 if number % 2 else -1]:
                    rates[world][name].append(steps * BATCH * world / sides[world][name].turn())
    return rates


def counted(case: Case, world: int, steps: int) -> dict[str, dict[str, float]]:
    """Calls and bytes of a step, by side and collective, as rank 0 makes them."""
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        for name, workers in sides_of(case, steps, world, stack).items():
            workers.turn(COUNT)
            spoken = workers.answers[0]["collectives"].values()
            found[name] = {what: sum(entry[what] for entry in spoken) / steps for what in ("calls", "bytes")}
    return found


def rows_of(rates: dict[int, dict[str, list[float]]], spoken: dict[int, dict[str, dict[str, float]]]) -> list[Row]:
    """Efficiency of ours over bare's in each round; what is said in a step beside bare's."""
    one, two = (rates[world] for world in TIMED)
    both = {name: [b / a / 2 for a, b in zip(one[name], two[name], strict=True)] for name in one}
    ratios = [ours / bare for ours, bare in zip(both["ours"], both["bare"], strict=True)]
    rows = [row("scaling to 2: efficiency to bare DDP's", ratios, "x", ">=", GOAL)]
    calls = [found["ours"]["calls"] - found["bare"]["calls"] for found in spoken.values()]
    rows.append(row("scaling: calls a step beyond bare's", calls, "", "<=", EXTRA_CALLS_GOAL))
    volumes = [found["ours"]["bytes"] / found["bare"]["bytes"] for found in spoken.values()]
    return [*rows, row("scaling: bytes a step to bare's", volumes, "x", "<=", BYTES_GOAL)]


def run(*, quick: bool = False, rounds: int = 5) -> list[Row]:
    """Measure, keep the figures, return the rows."""
    rounds, steps, count = (2, QUICK_STEPS, QUICK_STEPS) if quick else (rounds, STEPS, COUNTED_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            world: make_case("ce", Path(folder) / str(world), [f"train.batch_size={BATCH * world}"], world=world)
            for world in WORLDS
        }
        rates = timed(cases, rounds, steps)
        spoken = {world: counted(cases[world], world, count) for world in WORLDS if world > 1}
    rows = rows_of(rates, spoken)
    medians = {world: {name: statistics.median(found) for name, found in side.items()} for world, side in rates.items()}
    write("scaling", rows, quick=quick, images_per_s=rates, medians=medians, a_step=spoken, batch_a_process=BATCH)
    return rows


def lines(measured: dict[str, Any]) -> list[str]:
    """What has no goal: rates, and what is said in a step."""
    found = [
        f"  {world} process(es): ours {m['ours']:,.0f}, bare {m['bare']:,.0f} images/s"
        for world, m in measured["medians"].items()
    ]
    return found + [
        f"  {world} processes, a step: "
        + "; ".join(f"{name} {s['calls']:.2f} calls, {s['bytes'] / 1e6:.3f} MB" for name, s in sides.items())
        for world, sides in measured["a_step"].items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few steps: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)
    print(*lines(json.loads((RESULTS / "scaling.json").read_text())), sep="\n")


if __name__ == "__main__":
    main()
