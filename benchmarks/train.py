"""One distillation, the usual way and by kdscale: images a second, in turns.

    python -m benchmarks.train [--rounds 7] [--quick]

ResNet-56 teaches ResNet-8, then ResNet-20; 32 pixels, batch 64 a process, crop and flip, real Fashion-MNIST:

    plain         the usual way, written out (benchmarks/usual.py): PIL images, a DataLoader, fp32, a live teacher
    torchdistill  the same by torchdistill's own API, where it is: pip install --no-deps torchdistill==1.1.5
    online        kdscale, the teacher live
    cached        kdscale, the teacher's answers from its cache, filled beforehand
    limit         the student alone, bf16, batches lying ready in memory (benchmarks/bare.py): no teacher, no loader

The first two are one process on all cores, as they come; the others two processes of one thread. Each turn is a few
seconds of one side; a round is a turn of each, and its ratios are of rates in that round.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import REPOSITORY, Row, row, write
from benchmarks.stages import WORLD, finish, write_views
from benchmarks.turns import Workers
from kdscale import plugins
from kdscale.config.load import load
from kdscale.config.schema import DataConfig, StageSpec
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan

CONFIG = REPOSITORY / "benchmarks" / "train.yaml"
DEPTHS = (8, 20)
USUAL_BATCH, BATCH = 64, 128
"""Images of a step: of the usual way's one process, and of all of kdscale's."""
STEPS = {8: {"usual": 16, "online": 24, "alone": 64}, 20: {"usual": 12, "online": 16, "alone": 24}}
"""Of a turn: seconds, not fractions of one."""
QUICK_STEPS = 4


@dataclass(frozen=True)
class Goal:
    """A ratio of two sides, and what it should be at least for each student."""

    side: str
    over: str
    least: Mapping[int, float]

    def row(self, depth: int, rates: Mapping[str, Sequence[float]]) -> Row:
        """Its figure, from the rates of every round."""
        ratios = [ours / theirs for ours, theirs in zip(rates[self.side], rates[self.over], strict=True)]
        return row(f"train ResNet-{depth}: {self.side} to {self.over}", ratios, "x", ">=", self.least[depth])


GOALS = (
    Goal("online", "plain", {8: 3.0, 20: 2.5}),
    Goal("online", "torchdistill", {8: 3.0, 20: 2.5}),
    Goal("cached", "plain", {8: 7.0, 20: 5.0}),
    Goal("cached", "limit", {8: 0.97, 20: 0.97}),
)


def sides(depth: int, folder: Path, steps: Mapping[str, int]) -> dict[str, Callable[[], Workers]]:
    """What starts the workers of each side, by name; data, teacher and cache are made here."""
    root = Root(folder / "runs")
    plan = make_plan(load(CONFIG, [f"stages.{name}.student.depth={depth}" for name in ("online", "cached")]), root)
    prepare_folders(root, plan, retry_failed=False)
    stages = {stage.name: stage for stage in plan.stages.values()}
    for name in ("online", "cached"):
        for digest, _ in stages[name].parents.values():
            finish(plan, plan.stages[digest], root)
    online = stages["online"]
    spec = StageSpec.model_validate(online.definition["spec"])
    write_views(root, online, spec)
    bare = root.path / "bare"
    write_originals(spec.data, bare)

    def usual(way: str) -> Callable[[], Workers]:
        command = ["benchmarks.usual", str(bare), str(depth), way, str(steps["usual"])]
        return lambda: Workers(command, 1)

    def ours(name: str, turn: str) -> Callable[[], Workers]:
        command = ["benchmarks.ours", str(root.path), stages[name].digest, str(steps[turn])]
        return lambda: Workers(command, WORLD)

    alone = ["benchmarks.bare", str(bare), f"resnet{depth}", spec.train.precision, str(steps["alone"])]
    peer = {"torchdistill": usual("torchdistill")} if importlib.util.find_spec("torchdistill") else {}
    return {
        "plain": usual("plain"), **peer, "online": ours("online", "online"), "cached": ours("cached", "alone"),
        "limit": lambda: Workers(alone, WORLD),
    }  # fmt: skip


def write_originals(data: DataConfig, target: Path) -> None:
    """The pictures before any view of them, as the data set has them, and their labels."""
    source = plugins.load("datasets", data.name)(data).open("train")
    samples = [source[row] for row in range(data.limit or len(source))]
    np.save(target / "originals.npy", np.stack([image.squeeze(-1) for image, _ in samples]))
    np.save(target / "original_labels.npy", np.array([label for _, label in samples]))


def measure(depth: int, rounds: int, steps: Mapping[str, int]) -> dict[str, Any]:
    """Rates of all sides with one student, in turns."""
    each = {"plain": "usual", "torchdistill": "usual", "online": "online", "cached": "alone", "limit": "alone"}
    with tempfile.TemporaryDirectory() as folder:
        workers: dict[str, Workers] = {}
        try:
            for name, start in sides(depth, Path(folder), steps).items():
                workers[name] = start()
                workers[name].turn()  # warms up
            rates: dict[str, list[float]] = {name: [] for name in workers}
            for number in range(rounds):
                for name in [*workers][:: 1 if number % 2 else -1]:
                    images = steps[each[name]] * (USUAL_BATCH if each[name] == "usual" else BATCH)
                    rates[name].append(images / workers[name].turn())
        finally:
            for side in workers.values():
                side.close()
    return {name: {"median": statistics.median(found), "all": found} for name, found in rates.items()}


def run(*, quick: bool = False, rounds: int = 7) -> list[Row]:
    """Measure both students, keep the figures, return their rows."""
    rounds = 2 if quick else rounds
    rows, measured = [], {}
    for depth in DEPTHS:
        steps = dict.fromkeys(STEPS[depth], QUICK_STEPS) if quick else STEPS[depth]
        measured[f"resnet{depth}"] = found = measure(depth, rounds, steps)
        known = [goal for goal in GOALS if goal.over in found]
        rows += [goal.row(depth, {name: rate["all"] for name, rate in found.items()}) for goal in known]
    write("train", rows, quick=quick, images_per_s=measured, batch_size=BATCH, usual_batch_size=USUAL_BATCH)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few steps a turn: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)


if __name__ == "__main__":
    main()
