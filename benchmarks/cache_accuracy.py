"""Are students from a cached teacher as good as those from a live one? Fashion-MNIST, several seeds.

    python -m benchmarks.cache_accuracy [--seeds 3] [--runs FOLDER]

Trains benchmarks/cache_accuracy.yaml (12 epochs over a cache of 8 views, of 2 views, and over a live teacher) and says
whether the 90 % Welch interval of the difference lies within half a point: then they are equivalent at 5 %.
Source: Schuirmann, "A comparison of the two one-sided tests procedure", J. Pharmacokin. Biopharm. 15, 1987.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.special import stdtrit

from benchmarks.figures import REPOSITORY, RESULTS

CONFIG = REPOSITORY / "benchmarks" / "cache_accuracy.yaml"
WITHIN = 0.005
"""Top-1 in [0, 1]: half a point."""


def welch(first: Sequence[float], second: Sequence[float], level: float = 0.9) -> tuple[float, float, float]:
    """Mean difference second - first, and its two-sided interval of that level without assuming equal variances."""
    parts = [statistics.variance(sample) / len(sample) for sample in (first, second)]
    error = math.sqrt(sum(parts))
    difference = statistics.mean(second) - statistics.mean(first)
    if not error:
        return difference, difference, difference
    weights = sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (first, second), strict=True))
    half = float(stdtrit(error**4 / weights, (1 + level) / 2)) * error
    return difference, difference - half, difference + half


def top1_by_answers(results: Path) -> dict[str, list[float]]:
    """Top-1 on test of every seed's student, by where its teacher's answers came from."""
    found: dict[str, list[float]] = {}
    for row in json.loads(results.read_text()):
        if row["stage"] == "student" and row["top1"] is not None:
            found.setdefault(row["trial"]["answers"], []).append(row["top1"])
    return found


def main() -> int:
    """Train, compare, print, and write results/cache_accuracy.json; 1 where they are not equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs")
    given = parser.parse_args()
    command = [sys.executable, "launch/sweep.py", CONFIG, f"seed=range({given.seeds})", "--runs", given.runs.absolute()]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    newest = max(given.runs.glob("sweeps/cache-accuracy-*/results.json"), key=lambda path: path.stat().st_mtime)
    top1 = top1_by_answers(newest)
    document: dict[str, object] = {"schema": 1, "top1": top1, "within": WITHIN}
    equivalent = False
    for answers in ("views8", "views2"):
        difference, low, high = welch(top1["live"], top1[answers])
        inside = low > -WITHIN and high < WITHIN
        equivalent = inside if answers == "views8" else equivalent
        document[answers] = {"difference": difference, "low": low, "high": high, "equivalent": inside}
        print(
            f"{answers} - live: {100 * difference:+.2f} points, 90 % interval {100 * low:+.2f} to {100 * high:+.2f}: "
            f"{'equivalent' if inside else 'not shown to be equivalent'} within {100 * WITHIN:.1f}"
        )
    (RESULTS / "cache_accuracy.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0 if equivalent else 1


if __name__ == "__main__":
    sys.exit(main())
