"""From typing `python launch/sweep.py CONFIG` to the first training step, the data converted already.

    python -m benchmarks.startup [--rounds 5] [--quick]

configs/quickstart.yaml on real Fashion-MNIST (on two cores DDP of two processes), each launch in a fresh copy of a runs
folder that holds the data alone. The first step is the first line of the stage's metrics, which carries the time it was
written. Phases are seen from outside, by what a launch leaves on disk: plan.json, the worker's age, its claim, the line
that says "ready".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from benchmarks.figures import REPOSITORY, RESULTS, Row, row, write
from benchmarks.stages import QUICKSTART, make_data

GOAL_S, FURTHER_GOAL_S = 8.0, 2.0
"""From the command; and of each further stage, whose workers are forked from one that has imported everything."""
WAIT_S = 120.0
SHOWN_IMPORTS = 8
PHASES = {
    "parse and plan": "the sweep's folder is written",
    "workers up": "the worker is forked: everything is imported, the stage is the next to run",
    "claimed": "the ranks have found each other and hold the stage",
    "built": "loader, networks, teachers and engine are there, the first batch has been looked at",
    "first step": "the first step's metrics are written",
}
"""What ends each phase."""


def launch(root: Path) -> dict[str, float]:
    """Launch once, end the launch after its first step; returns each phase's end, in seconds from the start."""
    command = [sys.executable, "launch/sweep.py", str(QUICKSTART), "train.log_every_steps=1", "--runs", str(root)]
    begun = time.time()
    launcher = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        marks = _marks(root, launcher)
    finally:
        launcher.kill()  # its workers die with it
        launcher.wait()
    return {phase: at - begun for phase, at in zip(PHASES, marks, strict=True)}


def _marks(root: Path, launcher: subprocess.Popen[bytes]) -> list[float]:
    """Unix times at which the phases ended; asked while the workers live."""
    stage = _await(lambda: _training(root), launcher)
    attempt = json.loads((stage / "state.json").read_text())["attempts"][0]
    planned = next(root.glob("sweeps/*/sweep.yaml")).stat().st_mtime
    forked = _forked(attempt["pids"][0])
    log = (stage / "logs" / "attempt1-rank0.log").read_text().splitlines()
    ready = next(line for line in log if " ready after " in line)
    built = datetime.strptime(ready[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    first_step = float(json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])["time"])
    return [planned, forked, float(attempt["started"]), built, first_step]


def _forked(pid: int) -> float:
    """Unix time at which a process began; psutil knows it to the second only."""
    behind = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(behind[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def _training(root: Path) -> Path | None:
    """The folder of the stage that has made its first step."""
    return next((f.parent for f in root.glob("stages/*/metrics.jsonl") if b"\n" in f.read_bytes()), None)


def _await(look: Callable[[], Path | None], launcher: subprocess.Popen[bytes]) -> Path:
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        found = look()
        if found is not None:
            return found
        if launcher.poll() is not None:
            raise RuntimeError(f"the launch ended with exit code {launcher.returncode} before its first step")
        time.sleep(0.05)
    raise TimeoutError(f"no step after {WAIT_S:.0f} s")


def imports() -> dict[str, float]:
    """Seconds that a worker's imports take by package, the longest first; Python's own under `python`.

    What a package imports is counted there. They are timed one by one, which makes them slower than they are.
    """
    command = [sys.executable, "-X", "importtime", "-c", "from kdscale.jobs import warm; warm._import_everything()"]
    said = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stderr
    spent: dict[str, float] = {}
    for line in said.splitlines():
        found = re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if found:
            package = found[2].partition(".")[0]
            name = "python" if package.lstrip("_") in sys.stdlib_module_names else package
            spent[name] = spent.get(name, 0.0) + int(found[1]) / 1e6
    return dict(sorted(spent.items(), key=lambda entry: -entry[1]))


def run(*, quick: bool = False, rounds: int = 5) -> list[Row]:
    """Launch several times, keep the figures, return their row."""
    rounds = 2 if quick else rounds
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data")
        ends = []
        for number in range(rounds):
            root = Path(folder) / f"launch{number}"
            shutil.copytree(data, root)
            ends.append(launch(root))
    further = [end["first step"] - end["workers up"] for end in ends]
    rows = [
        row("command to first step", [end["first step"] for end in ends], "s", "<=", GOAL_S),
        row("a further stage: fork to first step", further, "s", "<=", FURTHER_GOAL_S),
    ]
    write("startup", rows, quick=quick, launches=ends, phases_s=phases(ends), phase_ends=PHASES, imports_s=imports())
    return rows


def phases(ends: list[dict[str, float]]) -> dict[str, float]:
    """Median length of each phase."""
    lengths: dict[str, list[float]] = {name: [] for name in PHASES}
    for end in ends:
        before = 0.0
        for name, at in end.items():
            lengths[name].append(at - before)
            before = at
    return {name: statistics.median(values) for name, values in lengths.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two launches: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)
    found = json.loads((RESULTS / "startup.json").read_text())
    for name, seconds in found["phases_s"].items():
        print(f"  {name:<16} {seconds:6.2f} s   until {PHASES[name]}")
    whole = sum(found["imports_s"].values())
    print(f"  of a worker's imports, {whole:.1f} s where each is timed:")
    for name, seconds in list(found["imports_s"].items())[:SHOWN_IMPORTS]:
        print(f"  {name:<16} {seconds:6.2f} s   {seconds / whole:.0%}")


if __name__ == "__main__":
    main()
