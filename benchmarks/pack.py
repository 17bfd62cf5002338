"""Small stages in jobs of their own, and sharing jobs (`resources.pack`): how long until all are done, in turns.

    python -m benchmarks.pack [--stages 8] [--rounds 3] [--quick]

A real SLURM with one node of two cores, on which two stages run at a time either way: as two jobs, or as
one job of two. Saved is what each job does again: being scheduled, importing torch, compiling what loads data.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.cluster import local_cluster, shell, submit, why_not
from benchmarks.figures import Row, row, write
from benchmarks.stages import finish
from benchmarks.submit import SWEEP, seeds
from kdscale.config.load import load
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan

PACK, GOAL = 2, 1.2
MOST_S = 600.0


def until_done(config: Path, data: Path, stages: int, pack: int) -> float:
    """Seconds from the submission until the last stage is done, on a root that holds the data alone."""
    with tempfile.TemporaryDirectory(prefix="pack", dir=data.parent) as folder:
        root = Path(folder) / "runs"
        shutil.copytree(data, root, symlinks=True)
        begun = time.time()
        submit(config, root, seeds(stages), f"resources.pack={pack}")
        while True:
            states = [stage.state() for stage in Root(root).stages() if stage.name == "student"]
            bad = [state for state in states if state["state"] in ("failed", "paused", "blocked")]
            if bad or time.time() - begun > MOST_S:
                raise RuntimeError(f"not all done: {bad or shell('squeue')}")
            if len(states) == stages and all(state["state"] == "done" for state in states):
                return max(float(state["updated"]) for state in states) - begun
            time.sleep(0.2)


def run(*, quick: bool = False, rounds: int = 3, stages: int = 8) -> list[Row]:
    """Measure in turns, keep the figures, return their row; none where there is no SLURM."""
    if reason := why_not():
        print(f"pack: {reason}", file=sys.stderr)
        return []
    os.environ["KDSCALE_CLUSTER_CPUS"] = str(PACK)
    stages, rounds = (PACK, 1) if quick else (stages, rounds)
    turns: dict[int, list[float]] = {1: [], PACK: []}
    with local_cluster(), tempfile.TemporaryDirectory(prefix="kdscale-pack-") as folder:
        shell("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=one node")
        config, data = prepared(Path(folder))
        until_done(config, data, PACK, 1)  # what numba compiles once for a node
        for number in range(rounds):
            for pack in (1, PACK) if number % 2 else (PACK, 1):
                turns[pack].append(until_done(config, data, stages, pack))
                print(f"{stages} stages, {pack} a job: {turns[pack][-1]:.1f} s", file=sys.stderr)
    ratios = [alone / packed for alone, packed in zip(turns[1], turns[PACK], strict=True)]
    rows = [row("pack: alone to packed", ratios, "x", ">=", GOAL)]
    seconds = {f"pack_{pack}_s": statistics.median(values) for pack, values in turns.items()}
    write("pack", rows, quick=quick, stages=stages, **seconds)
    return rows


def prepared(folder: Path) -> tuple[Path, Path]:
    """A config of small students, and a root that holds their data alone."""
    config, data = folder / "small.yaml", folder / "data"
    student = {name: part for name, part in SWEEP["stages"]["teacher"].items() if name != "seed"}
    config.write_text(yaml.safe_dump(SWEEP | {"engine": {"processes": 1}, "stages": {"student": student}}))
    root = Root(data)
    plan = make_plan(load(str(config), []), root)
    prepare_folders(root, plan, retry_failed=False)
    (made,) = (stage for stage in plan.stages.values() if stage.kind == "convert")
    finish(plan, made, root)
    shutil.rmtree(next(stage.path for stage in root.stages() if stage.name == "student"))
    return config, data


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of a few stages: for trying out only")
    given = parser.parse_args()
    for entry in run(quick=given.quick, rounds=given.rounds, stages=given.stages):
        print(entry.line)


if __name__ == "__main__":
    main()
