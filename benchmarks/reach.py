"""Time to an accuracy: a distillation the usual way to its end, and by kdscale, from the command to its exit.

    python -m benchmarks.reach [--way equal|short] [--rows 60000] [--epochs 10] [--students 10] [--runs DIR] [--quick]

ResNet-56 teaches ResNet-8 on real Fashion-MNIST, 32 pixels, crop and flip, under one schedule. The usual way is the
plain loop of benchmarks/usual.py: PIL images, a live teacher, fp32. kdscale's time is that of `launch/sweep.py` with
all that it does: start, filling the teacher's cache, training, evaluation, report. Both find the teacher trained.

    equal   both train for so many epochs
    short   kdscale by a recipe of its own (RECIPE), for fewer of them (SHORT)

Both sides' accuracies stand beside the ratio: a ratio is worth something where they agree.
Each way is measured between two runs of the usual one, each of which has a seed of its own, as kdscale's students have:
one student's accuracy is a draw. A way that is not asked for keeps the figures that it has.

Ten students the usual way are ten times one; by kdscale they are a sweep over seeds, each on a core of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import REPOSITORY, RESULTS, Row, machine, row, write
from benchmarks.train import write_originals
from kdscale import plugins
from kdscale.config.load import load
from kdscale.config.schema import StageSpec
from kdscale.data.store import Store
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan

CONFIG = REPOSITORY / "benchmarks" / "reach.yaml"
DEPTH = 8
GOALS = {"equal": (4.0, 7.0), "short": (6.0, 10.0)}
"""For one student, and for all of a sweep."""
SHORT = 0.8
"""Of the epochs: seeds differ by more than recipes do, so that "the fewest that suffice" would be luck of one seed."""
RECIPE = ("stages.student.train.lr=0.4", "stages.student.teachers.teacher.cache.views=1")
"""What the short way changes: a rate twice as high, and one view of each image, which few epochs do not outlive."""
SIDE_BY_SIDE = ("stages.student.engine.processes=1", f"limits.parallel={machine()['cores']}")
"""Of a sweep: as many students at a time as there are cores, which then share no gradients."""


class Runs:
    """A runs root with the data and a trained teacher, and what students take on copies of it.

    Args:
        folder: for all of it.
        root: where the teacher is trained, or found.
        given: overrides of the config.
    """

    def __init__(self, folder: Path, root: Path, given: Sequence[str]) -> None:
        self._folder, self._given = folder, given
        self.root = root
        self._sweep(self.root, "stages.student=null")
        self.plan = make_plan(load(CONFIG, [*given]), Root(self.root))

    @property
    def teacher(self) -> Path:
        """Its weights."""
        (path,) = self.root.glob("stages/teacher-*/student.safetensors")
        return path

    def write_originals(self, target: Path) -> None:
        """The pictures and labels of train and test, and how they are normalised, for the usual way."""
        target.mkdir()
        student = next(stage for stage in self.plan.stages.values() if stage.name == "student")
        spec = StageSpec.model_validate(student.definition["spec"])
        made = Root(self.root).stage(student.definition["data"]["store"])
        assert made is not None
        pixels = Store.open(made.path / "store").info
        np.save(target / "pixels.npy", np.array([pixels.mean[0], pixels.std[0]]))
        write_originals(spec.data, target)
        tests = plugins.load("datasets", spec.data.name)(spec.data).open("test")
        samples = [tests[row] for row in range(len(tests))]
        np.save(target / "test.npy", np.stack([image.squeeze(-1) for image, _ in samples]))
        np.save(target / "test_labels.npy", np.array([label for _, label in samples]))

    def students(self, epochs: int, seeds: int, recipe: Sequence[str] = ()) -> tuple[float, float]:
        """Seconds of the command, cache filling included, and the students' mean accuracy on test."""
        root = self._folder / f"students{epochs}x{seeds}"
        shutil.copytree(self.root, root, symlinks=True)
        begun = time.perf_counter()
        self._sweep(
            root, f"stages.student.train.epochs={epochs}", f"stages.student.seed=range({seeds})", "name=reached",
            *recipe, *(SIDE_BY_SIDE if seeds > 1 else ()),
        )  # fmt: skip
        spent = time.perf_counter() - begun
        (results,) = root.glob("sweeps/reached-*/results.json")
        reached = [found["top1"] for found in json.loads(results.read_text()) if found["stage"] == "student"]
        shutil.rmtree(root)
        return spent, statistics.mean(reached)

    def _sweep(self, root: Path, *more: str) -> None:
        command = [sys.executable, "launch/sweep.py", str(CONFIG), *self._given, *more, "--yes", "--runs", str(root)]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)


def usual(originals: Path, epochs: int, teacher: Path, seed: int) -> tuple[float, float]:
    """Seconds of the usual way's whole process, and its student's accuracy on test."""
    given = (originals, DEPTH, epochs, teacher, seed)
    command = [sys.executable, "-m", "benchmarks.usual_whole", *map(str, given)]
    begun = time.perf_counter()
    said = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - begun, float(json.loads(said.splitlines()[-1])["top1"])


def equal(runs: Runs, given: argparse.Namespace) -> dict[str, Any]:
    """As many epochs as the usual way, for one student and for all of a sweep."""
    return {"kdscale": {count: runs.students(given.epochs, count) for count in (1, given.students)}}


def short(runs: Runs, given: argparse.Namespace) -> dict[str, Any]:
    """Fewer epochs by the recipe, for one student and for all of a sweep."""
    epochs = max(1, round(SHORT * given.epochs))
    return {"kdscale": {count: runs.students(epochs, count, RECIPE) for count in (1, given.students)}, "epochs": epochs}


def measure(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds and accuracies of the ways that were asked for, each between two runs of the usual one."""
    runs = Runs(folder, given.runs or folder / "teacher", [f"data.limit={given.rows}", f"train.epochs={given.epochs}"])
    runs.write_originals(folder / "originals")
    before = usual(folder / "originals", given.epochs, runs.teacher, seed=0)
    tell("the usual way", before)
    found: dict[str, dict[str, Any]] = {}
    for seed, way in enumerate(GOALS, 1):
        if given.way in {None, way}:
            found[way] = (equal if way == "equal" else short)(runs, given)
            after = usual(folder / "originals", given.epochs, runs.teacher, seed)
            found[way]["usual"] = [before, after]
            tell(way, found[way])
            before = after
    return found


def tell(what: str, seconds_and_top1: object) -> None:
    """What is known so far of a run that lasts an hour."""
    print(f"reach: {what}: {seconds_and_top1}", file=sys.stderr, flush=True)


def rows_of(way: str, found: Mapping[str, Any]) -> list[Row]:
    """Ratios of seconds, from the usual way's runs before and after."""
    rows = []
    theirs = statistics.mean(top1 for _, top1 in found["usual"])
    for (count, (seconds, top1)), goal in zip(found["kdscale"].items(), GOALS[way], strict=True):
        ratios = [int(count) * spent / seconds for spent, _ in found["usual"]]
        what = f"reach, {way}: {count} student(s), {top1:.2%} (usual {theirs:.2%})"
        rows.append(row(what, ratios, "x", ">=", goal))
    return rows


def kept(setting: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was measured before in this setting, by way."""
    path = RESULTS / "reach.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    ours: dict[str, dict[str, Any]] = found.get("measured", {})
    return ours if setting.items() <= found.items() else {}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--way", choices=tuple(GOALS), help="default: both")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--students", type=int, default=10)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where the teacher is kept")
    parser.add_argument("--quick", action="store_true", help="few rows and two epochs: for trying out only")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.epochs, given.students = 640, 2, 2
    with tempfile.TemporaryDirectory(prefix="kdscale-reach-") as folder:
        found = measure(given, Path(folder))
    setting = {"quick": given.quick, "rows_of_data": given.rows, "epochs": given.epochs}
    measured = kept(setting) | found
    rows = [entry for way in GOALS if way in measured for entry in rows_of(way, measured[way])]
    write("reach", rows, **setting, measured=measured)
    for entry in rows:
        print(entry.line)
    for way, ours in measured.items():
        print(f"the usual way beside {way}:", " and ".join(f"{top1:.2%} in {s:.0f} s" for s, top1 in ours["usual"]))


if __name__ == "__main__":
    main()
