"""What each loss costs, beside its plainest formula and beside a student's step: in turns, on one thread.

    python -m benchmarks.losses [--only NAME ...] [--seconds 3] [--quick]

Forward and backward of each loss against benchmarks/plain_losses.py, at B = 256 on the shapes of a ResNet-56 that
teaches a ResNet-20, and at B = 1,024 with 1,000 classes; then its share of a ResNet-20's step at B = 128 in bf16, from
features as such a step has them. Peak memory is what the allocator hands out during forward and backward, by the
profiler's record of every allocation: temporaries within an operation count, and nothing that was there before.
Times are the processor time of the one thread that computes, which other work on the machine stretches least.
RKD's plain angles take 30 GB at B = 1,024 and minutes, so there both sides compute those of a few corners.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cache import STEPS, built, in_turns, stepping
from benchmarks.figures import Row, row, write
from benchmarks.loss_cases import CASES, STEP, Case, Side, pair_of
from benchmarks.plain_losses import PLAIN, plain_angles, plain_distances
from kdscale.losses.rkd import angle_gap, distance_gap
from kdscale.train.device import settle_heap

MOST, MOST_SHARE, MOST_ANGLES_MB = 1.05, 15.0, 200
DEAR = {
    "crd": ": scores every sample against the whole bank in both directions, and sums 16,384 terms each",
    "at_grad": ": goes backward through the student twice, in fp32",
    "reviewkd": ": convolves all levels, 3x3, with the last level's channels at the first level's size",
}
"""Losses whose share of a step is shown and has no goal."""
TURN_S = 0.01
"""Least length of a turn: cheap losses are repeated within it."""
CORNERS = 8
"""Of RKD's angles at B = 1,024."""
STUDENT = {
    "name": "bench", "data": {
        "name": "synthetic",
        "options": {"classes": 100, "train_rows": 5000, "test_rows": 500, "size": 32, "channels": 3},
        "val_fraction": 0, "augment": {"crop": 4, "flip": True},
    },
    "train": {"epochs": 1000, "batch_size": STEP.batch, "lr": 0.01, "precision": "bf16"}, "engine": {"processes": 1},
    "stages": {"student": {"student": {"model": "resnet_cifar", "depth": 20}, "losses": [{"name": "ce"}]}},
}  # fmt: skip

Run = Callable[[], None]


def seconds_of(side: Side, repeats: int) -> float:
    """Processor time of one forward and backward, over some repeats; making the answers is not counted."""
    spent = 0.0
    for _ in range(repeats):
        student, teacher = side.begin()
        side.clear(student)
        begun = time.thread_time()
        side.run(student, teacher)
        spent += time.thread_time() - begun
    return spent / repeats


def peak_mb(side: Side) -> float:
    """Most memory that forward and backward hold at once beyond what was there, in MB."""
    student, teacher = side.begin()
    side.clear(student)
    return peak_of(lambda: side.run(student, teacher))


def peak_of(run: Run) -> float:
    """The largest sum of allocations less what was freed, in MB, while `run` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / 2**20


def compare(ours: Side, plain: Side, budget_s: float) -> dict[str, Any]:
    """Both sides in turns until the time is spent, five rounds at least; seconds and peaks of each."""
    once = [seconds_of(side, 1) for side in (ours, plain)]
    repeats = max(1, round(TURN_S / max(min(once), 1e-6)))
    rounds = min(200, max(5 if sum(once) < 2 else 2, round(budget_s / (sum(once) * repeats))))
    turns = {name: lambda side=side: seconds_of(side, repeats) for name, side in (("ours", ours), ("plain", plain))}
    found = in_turns(turns, rounds)  # type: ignore[arg-type]
    return {
        "ratios": [mine / theirs for mine, theirs in zip(found["ours"], found["plain"], strict=True)],
        "ms": {name: 1e3 * statistics.median(values) for name, values in found.items()},
        "ratio_of_minima": min(found["ours"]) / min(found["plain"]),
        "peak_mb": {"ours": peak_mb(ours), "plain": peak_mb(plain)},
    }


# ------------------------------------------------------------------------------- RKD at many samples


def few_corners(case: Case) -> tuple[Side, Side]:
    """RKD with the angles at a few corners, both ways."""
    ours, plain = pair_of("rkd", case)
    config = ours.parts.config

    def chunked(student: Any, teacher: Any) -> torch.Tensor:
        own, taught = student.features[0], teacher.features[0]
        angles = angle_gap(own, taught, range(CORNERS), config.chunk)
        return config.distance * distance_gap(own, taught) + config.angle * angles

    def plainly(student: Any, teacher: Any) -> torch.Tensor:
        own, taught = student.features[0], teacher.features[0]
        return config.distance * plain_distances(own, taught) + config.angle * plain_angles(own, taught, slice(CORNERS))

    return Side(chunked, ours.begin, ours.parts), Side(plainly, plain.begin, plain.parts)


def angles_mb(corners: int) -> float:
    """Peak memory of RKD's angles among 1,024 samples of the widths of ResNet-18 and -50."""
    own, taught = torch.randn(1024, 512, requires_grad=True), torch.randn(1024, 2048)
    chunk = pair_of("rkd", CASES["B256"])[0].parts.config.chunk
    return peak_of(lambda: angle_gap(own, taught, range(corners), chunk).backward())


# ------------------------------------------------------------------------------- the share of a step


def shares(names: Sequence[str], budget_s: float) -> dict[str, list[float]]:
    """Each loss's forward and backward in percent of a step of a ResNet-20 that learns from labels alone."""
    with tempfile.TemporaryDirectory() as scratch:
        step = _student(Path(scratch))
        found = {}
        for name in names:
            side, _ = pair_of(name, STEP, half=True)
            rounds = 5 if budget_s > 1 else 1
            turns = in_turns({"step": step, "loss": lambda side=side: seconds_of(side, 2)}, rounds)  # type: ignore[misc]
            found[name] = [100 * mine / whole for mine, whole in zip(turns["loss"], turns["step"], strict=True)]
            print(f"{name:<10} {statistics.median(found[name]):5.1f} % of a step{DEAR.get(name, '')}", flush=True)
    return found


def _student(folder: Path) -> Callable[[], float]:
    """Seconds of a step in the thread that trains, by the loop that trains."""
    turn = stepping(built(STUDENT, folder, ["student"])["student"])

    def step() -> float:
        begun = time.thread_time()
        turn()
        return (time.thread_time() - begun) / STEPS

    return step


# ------------------------------------------------------------------------------- all of it


def run(*, quick: bool = False, only: Sequence[str] = (), budget_s: float = 3.0) -> list[Row]:
    """Measure everything, show it as it comes, keep the figures of a whole run, return their rows."""
    settle_heap()
    torch.set_num_threads(1)
    names, budget_s = only or sorted(PLAIN), 0.2 if quick else budget_s
    rows: list[Row] = []
    measured: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        for label, case in CASES.items():
            sides = few_corners(case) if name == "rkd" and case.batch > 256 else pair_of(name, case)
            found = measured[name][label] = compare(*sides, budget_s)
            rows.append(row(f"{name} {label}: to plain", found["ratios"], "x", "<=", MOST))
            print(line_of(name, label, found), flush=True)
    if "rkd" in names:
        rows.append(row("rkd: angles of 1,024 samples", [angles_mb(2 * CORNERS)], "MB", "<=", MOST_ANGLES_MB))
    for name, percent in shares(names, budget_s).items():
        measured[name]["share_of_step_percent"] = statistics.median(percent)
        if name not in DEAR:
            rows.append(row(f"{name}: share of a step", percent, "%", "<=", MOST_SHARE))
    if not only:
        write("losses", rows, quick=quick, losses=measured, turn_s=TURN_S, corners_of_angles=CORNERS)
    return rows


def line_of(name: str, label: str, found: dict[str, Any]) -> str:
    """One loss at one size."""
    ms, mb = found["ms"], found["peak_mb"]
    ratio = f"{statistics.median(found['ratios']):.3f} x (of minima {found['ratio_of_minima']:.3f})"
    times = f"{ms['ours']:9.3f} ms, plain {ms['plain']:9.3f}"
    return f"{name:<10} {label:<6} {times}, {ratio}; {mb['ours']:8.1f} MB, plain {mb['plain']:8.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(PLAIN), default=(), metavar="NAME", help="some losses only")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each loss at each size")
    parser.add_argument("--quick", action="store_true", help="short turns: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, only=chosen.only, budget_s=chosen.seconds):
        print(entry.line)


if __name__ == "__main__":
    main()
