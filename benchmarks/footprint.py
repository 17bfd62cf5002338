"""What grows, and how far: the planner with its trials, a cache's reader with the cache, a stage with its epochs.

    python -m benchmarks.footprint [--quick]

planner  peak memory of `--dry-run` at 1,000 and at 10,000 trials, in a process of its own
reader   memory of its own that a process takes to read every record of a cache, small and ten times as large; the
         cache's pages, which the kernel takes back when it wants to, are not counted
stage    resident memory of a worker in its last ten epochs, over that in its epochs 5 to 15; validation, metrics,
         checkpoints and all
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.figures import REPOSITORY, Row, row, write
from benchmarks.stages import QUICKSTART, finish
from benchmarks.submit import SWEEP, plan_once, seeds
from benchmarks.turns import status_kb
from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from kdscale.config.load import load
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan

TRIALS, ROWS = (1_000, 10_000), (200_000, 2_000_000)
EPOCHS, EARLY, LATE = 60, (5, 15), 10
GOALS = {"planner": 2_000.0, "reader": 64.0, "stage": 1.02}
BATCH = 1024


# ------------------------------------------------------------------------------- a cache's reader


def read_all(cache: CacheFolder) -> float:
    """MB of its own that this process takes to read every record, in batches in a shuffled order."""
    reader, order = CacheReader(cache), np.random.default_rng(1).permutation(cache.manifest.rows)
    reader.gather(order[:BATCH], 0)
    before = status_kb("RssAnon")
    most = 0
    for begin in range(0, len(order), BATCH):
        reader.gather(order[begin : begin + BATCH], 0)
        most = max(most, status_kb("RssAnon"))
    return (most - before) / 1024


def reader_mb(folder: Path, rows: int) -> float:
    """`read_all` in a fresh process."""
    code = (
        "from pathlib import Path; from benchmarks.cache import make_cache; from benchmarks.footprint import read_all; "
    )
    code += f"print(read_all(make_cache(Path({str(folder)!r}), {rows})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


# ------------------------------------------------------------------------------- a stage's epochs


def resident_by_epoch(folder: Path, epochs: int) -> list[float]:
    """MB of a worker that trains a small student, the most in each epoch."""
    overrides = [
        "data.limit=2000", "engine.processes=1", "stages.assistant=null", "stages.student=null",
        "stages.teacher.student.depth=8", f"stages.teacher.train.epochs={epochs}", "tracking.uri=off",
        "stages.teacher.train.checkpoint_every_steps=20", "stages.teacher.train.log_every_steps=5",
    ]  # fmt: skip
    root = Root(folder / "runs")
    plan = make_plan(load(str(QUICKSTART), overrides), root)
    prepare_folders(root, plan, retry_failed=False)
    (stage,) = (stage for stage in plan.stages.values() if stage.name == "teacher")
    finish(plan, plan.stages[stage.definition["data"]["store"]], root)
    made = root.stage(stage.digest)
    assert made is not None
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1", "KDSCALE_ATTEMPT": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "kdscale.jobs.stage_job", str(root.path), stage.digest]
    found: dict[int, float] = {}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL) as worker:
        while worker.poll() is None:
            try:
                resident = status_kb("VmRSS", worker.pid) / 1024
                epoch = _epochs_done(made.metrics)
                found[epoch] = max(found.get(epoch, 0.0), resident)
            except (OSError, KeyError):  # it is gone
                pass
            time.sleep(0.05)
    if worker.returncode:
        raise RuntimeError(f"the stage ended with {worker.returncode}")
    return [found[epoch] for epoch in sorted(found)]


def _epochs_done(metrics: Path) -> int:
    """By its metrics, which hold a line with validation for each."""
    if not metrics.exists():
        return 0
    return sum("val/top1" in json.loads(line)["metrics"] for line in metrics.read_text().splitlines())


def run(*, quick: bool = False) -> list[Row]:
    """Measure, keep the figures, return the rows."""
    trials, sizes, epochs = ((50, 100), (8_192, 16_384), 20) if quick else (TRIALS, ROWS, EPOCHS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "scale.yaml"
        config.write_text(yaml.safe_dump(SWEEP))
        plans = {count: plan_once(config, seeds(count), folder / "none") for count in trials}
        readers = {rows: reader_mb(folder / str(rows), rows) for rows in sizes}
        resident = resident_by_epoch(folder / "stage", epochs)
    early, late = statistics.median(resident[slice(*EARLY)]), statistics.median(resident[-LATE:])
    rows = [
        *(row(f"plan {count:,} trials: peak", [plans[count][1]], "MB", "<=", GOALS["planner"]) for count in trials),
        *(row(f"cache reader: {size:,} records", [readers[size]], "MB", "<=", GOALS["reader"]) for size in sizes),
        row(f"a stage after {epochs} epochs to its tenth", [late / early], "x", "<=", GOALS["stage"]),
    ]
    write("footprint", rows, quick=quick, plans=plans, reader_mb=readers, resident_mb_by_epoch=resident)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: for trying out only")
    for entry in run(quick=parser.parse_args().quick):
        print(entry.line)


if __name__ == "__main__":
    main()
