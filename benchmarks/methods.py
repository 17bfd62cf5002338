"""Every method against labels alone (`ce`) and soft targets (`kd`): one teacher, several seeds, means with intervals.

    python -m benchmarks.methods [KEY=VALUE ...] [--runs FOLDER] [--out FOLDER]

Runs configs/methods.yaml on this machine (the same command goes on where it stopped) and writes methods.json, .md and
.png: top-1 on test, and its difference to both, each with Welch's two-sided 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache_accuracy import welch
from benchmarks.figures import REPOSITORY, RESULTS, machine
from kdscale.report.statistics import interval

LEVEL = 0.95
REFERENCES = ("ce", "kd")

Difference = tuple[float, float | None, float | None]
"""Mean and the ends of its interval, which one outcome on either side leaves open."""


@dataclass(frozen=True)
class Compared:
    """One method; shares in [0, 1]."""

    method: str
    top1: list[float]
    """Of each seed's student."""
    mean: float
    half: float | None
    """Half-width of the 95 % t-interval of the mean."""
    to_ce: Difference
    to_kd: Difference
    tflops: float
    """Of a trial's stages that it has to itself, as planned: the student's, and those before it."""

    @property
    def below_ce(self) -> bool:
        """Whether the whole interval of the difference to labels alone lies below 0."""
        return self.to_ce[2] is not None and self.to_ce[2] < 0


def compared(rows: Sequence[Mapping[str, Any]], stages: Mapping[str, Mapping[str, Any]]) -> list[Compared]:
    """Compare methods by the rows of a sweep's results.json and its plan's stages, the best first.

    Raises:
        ValueError: a reference has no finished student.
    """
    top1: dict[str, list[float]] = {}
    flops: dict[str, float] = {}
    for row in rows:
        method = row["trial"]["method"]
        if row["stage"] == "student" and row["top1"] is not None:
            top1.setdefault(method, []).append(row["top1"])
        if row["stage"] != "teacher":
            flops[method] = flops.get(method, 0.0) + stages[row["digest"]]["cost"]["train_flops"]
    lacking = [name for name in REFERENCES if name not in top1]
    if lacking:
        raise ValueError(f"no finished student of {', '.join(lacking)}: nothing to compare with")
    found = [_compared(method, values, top1, flops[method]) for method, values in top1.items()]
    return sorted(found, key=lambda one: -one.mean)


def _compared(method: str, values: list[float], top1: Mapping[str, list[float]], flops: float) -> Compared:
    own = interval(values)
    assert own is not None
    itself: Difference = (0.0, None, None)
    to_ce, to_kd = (itself if method == name else difference(top1[name], values) for name in REFERENCES)
    return Compared(method, values, own.mean, own.half, to_ce, to_kd, flops / len(values) / 1e12)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean of second - first with Welch's interval; open where a side has one outcome only."""
    if min(len(first), len(second)) < 2:
        return statistics.mean(second) - statistics.mean(first), None, None
    return welch(first, second, LEVEL)


# --------------------------------------------------------------------------- table


def markdown(found: Sequence[Compared], facts: Mapping[str, Any]) -> str:
    """The table, with what was run and what can be read from it."""
    below = [one.method for one in found if one.below_ce]
    lines = [
        "# Methods compared", "",
        f"`{facts['command']}`", "",
        f"{facts['data']}. Teacher {facts['teacher']}, top-1 {100 * facts['teacher_top1']:.2f} %; student "
        f"{facts['student']}. Top-1 on test after the last epoch; 95 % intervals, of differences by Welch, in points. "
        "TFLOPs: as planned, of the stages that a trial has to itself; a cached teacher is not asked by them.",
        "", "![differences to labels alone and to soft targets](methods.png)", "",
        "| method | seeds | top-1 % | to ce | to kd | TFLOPs |", "|---|---|---|---|---|---|",
        *(_line(one) for one in found), "",
        f"Whole interval below ce: {', '.join(below) or 'none'}.", "",
        *READING,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


READING = (
    "What it shows: what each method with its published weights brings to this small student on these rows, beside",
    "labels alone and soft targets, from one teacher, on equal splits, views and initial weights.",
    "",
    "What it does not: whether a method is better. Weights come from CIFAR-100, 100 classes, 240 epochs, and none is",
    "tuned here, but that at_grad, mlkd and prime_aware were changed after a first look at these figures, as the heads",
    "of their configs say; training is short; networks are of one family. Methods with stages before (ab,",
    "fitnet_two_stage, fsp, ft, pad, prime_aware) train longer in all. Few seeds leave wide intervals, and of many",
    "comparisons at 95 % one in twenty lies outside by chance.",
)


def _line(one: Compared) -> str:
    own = f"{100 * one.mean:.2f}" + (f" ± {100 * one.half:.2f}" if one.half is not None else "")
    to_ce, to_kd = map(shown, (one.to_ce, one.to_kd))
    return f"| {one.method} | {len(one.top1)} | {own} | {to_ce} | {to_kd} | {one.tflops:.1f} |"


def shown(found: Difference) -> str:
    """In points."""
    mean, low, high = found
    ends = f" [{100 * low:+.2f}, {100 * high:+.2f}]" if low is not None and high is not None else ""
    return f"{100 * mean:+.2f}{ends}"


# --------------------------------------------------------------------------- picture

BETTER, WORSE, OPEN = "#1a7f5a", "#b3362b", "#6b7280"


def draw(found: Sequence[Compared], path: Path) -> None:
    """A column for each reference, the best method on top."""
    bases = {name: next(one.mean for one in found if one.method == name) for name in REFERENCES}
    rows = [
        (
            f"{one.method}  {100 * one.mean:.1f}",
            [(gap, [value - bases[n] for value in one.top1]) for n, gap in (("ce", one.to_ce), ("kd", one.to_kd))],
        )
        for one in reversed(found)
    ]
    draw_differences(rows, REFERENCES, path)


Marked = tuple[Difference | None, Sequence[float]]
"""A difference with its interval, and that of each seed."""


def draw_differences(rows: Sequence[tuple[str, Sequence[Marked]]], names: Sequence[str], path: Path) -> None:
    """Columns of differences to references with their intervals, lowest row first, each seed a small dot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(names), sharey=True, figsize=(9.5, 1.4 + 0.27 * len(rows)), layout="constrained"
    )
    for column, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for y, (_, cells) in enumerate(rows):
            gap, seeds = cells[column]
            if gap is not None:
                _mark(axes, y, gap, seeds)
        axes.axvline(0, color="black", lw=0.8, zorder=1)
        axes.set_xlabel(f"top-1 minus {name}, points")
        axes.grid(axis="x", lw=0.4, color="#d1d5db")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [label for label, _ in rows])
    figure.suptitle("difference of means, with Welch's 95 % interval; dots: seeds", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _mark(axes: Any, y: int, found: Difference, seeds: Sequence[float]) -> None:
    mean, low, high = found
    colour = OPEN
    if low is not None and high is not None:
        colour = BETTER if low > 0 else WORSE if high < 0 else OPEN
        axes.plot([100 * low, 100 * high], [y, y], color=colour, lw=2, zorder=2, solid_capstyle="round")
    axes.scatter([100 * value for value in seeds], [y - 0.28] * len(seeds), s=5, color=colour, alpha=0.7, lw=0)
    axes.scatter([100 * mean], [y], s=26, color=colour, zorder=3)


# --------------------------------------------------------------------------- command


def facts_of(rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], command: str) -> dict[str, Any]:
    """What was run, for the head of the table."""
    teacher = next(row for row in rows if row["stage"] == "teacher")
    student = next(row for row in rows if row["stage"] == "student")
    return {
        "command": command, "sweep": plan["name"], "teacher": teacher["model"], "teacher_top1": teacher["top1"],
        "student": student["model"], "data": _data_phrase(plan),
    }  # fmt: skip


def _data_phrase(plan: Mapping[str, Any]) -> str:
    import yaml

    document = yaml.safe_load(str(plan["text"]))
    data, train = document["data"], document["train"]
    rows = f"{data['limit']:,} rows" if data.get("limit") else "all rows"
    return f"{data['name']}, {rows}, {train['epochs']} epochs in batches of {train['batch_size']}"


def write(folder: Path, out: Path, command: str) -> list[Compared]:
    """Read a sweep's folder and write methods.json, .md and .png."""
    rows = json.loads((folder / "results.json").read_text())
    plan = {"name": folder.name, "text": (folder / "sweep.yaml").read_text()}
    stages = json.loads((folder / "plan.json").read_text())["stages"]
    found, facts = compared(rows, stages), facts_of(rows, plan, command)
    out.mkdir(parents=True, exist_ok=True)
    methods = [asdict(one) for one in found]
    document = {"schema": 1, "level": LEVEL, **facts, "methods": methods, **machine()}
    (out / "methods.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "methods.md").write_text(markdown(found, facts))
    draw(found, out / "methods.png")
    return found


def main() -> int:
    """Run what is not done, and write table and picture; 1 where a stage failed (the rest is written all the same)."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as launch/sweep.py takes them")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_intermixed_args()
    sweep = [sys.executable, "launch/sweep.py", "configs/methods.yaml", *given.overrides, "--yes"]
    running = subprocess.Popen([*sweep, "--runs", str(given.runs.absolute())], cwd=REPOSITORY)
    try:
        code = running.wait()
    except KeyboardInterrupt:  # the sweep was asked too, and stops between two steps
        return running.wait()
    newest = max(given.runs.glob("sweeps/methods-*/results.json"), key=lambda path: path.stat().st_mtime, default=None)
    if code > 1 or newest is None:
        return code
    command = shlex.join(["python", "-m", "benchmarks.methods", *given.overrides])
    try:
        found = write(newest.parent, given.out.absolute(), command)
    except ValueError as error:  # stopped before the references were done
        print(f"benchmarks.methods: {error}", file=sys.stderr)
        return code or 1
    for one in found:
        print(_line(one))
    return code


if __name__ == "__main__":
    sys.exit(main())
