"""What an interruption costs on a real SLURM, and what a checkpoint costs on this disk.

    python -m benchmarks.resume [--rounds 3] [--quick]

A stage that logs each step runs on the cluster of `slurm/local-cluster` and is disturbed once, in each of four ways.
Steps lost are those that it does a second time; the gap is from its last step to its first new one, and the part of
it that is kdscale's is counted from SLURM's start of the job. Without SLURM or root only the checkpoint is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks import checkpoint
from benchmarks.cluster import control, local_cluster, shell, submit, why_not
from benchmarks.figures import REPOSITORY, Row, row, write
from kdscale import atomic
from kdscale.pipeline.artifacts import Root, StageFolder

WITHIN_S = 240.0
DISTURBED_AT = 150
CHECKPOINT_EVERY = 100
STAGE: dict[str, Any] = {
    "name": "resume",
    "data": {"name": "synthetic", "options": {"train_rows": 720, "test_rows": 100, "size": 16}, "val_fraction": 0.0},
    "train": {
        "epochs": 100_000, "batch_size": 32, "lr": 0.01, "precision": "fp32", "log_every_steps": 1,
        "checkpoint_every_steps": CHECKPOINT_EVERY,
    },
    "tracking": {"uri": "off"},
    "stages": {
        "net": {"student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}, "losses": [{"name": "ce"}]}
    },
}  # fmt: skip


def _preempt(stage: StageFolder, job: str) -> None:
    del stage, job
    shell("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")


def _requeue(stage: StageFolder, job: str) -> None:
    del stage
    shell("scontrol", "requeue", job)


def _lose_node(stage: StageFolder, job: str) -> None:
    del job
    control("kill-node", str(stage.state()["attempts"][-1]["host"]))


def _wait_for_the_limit(stage: StageFolder, job: str) -> None:
    del stage, job


Disturb = Callable[[StageFolder, str], None]
CAUSES: dict[str, tuple[Disturb, tuple[str, ...], int]] = {
    "preempted": (_preempt, (), 0),
    "time limit": (_wait_for_the_limit, ("resources.time_min=1",), 0),
    "scontrol requeue": (_requeue, (), CHECKPOINT_EVERY),
    "node lost": (_lose_node, (), CHECKPOINT_EVERY),
}
"""How each comes about, what its stage asks for, and the most steps that it may cost."""


def drill(cause: str, config: Path, root: Path, number: int) -> dict[str, float]:
    """Disturb one new stage; returns what that cost."""
    disturb, overrides, _ = CAUSES[cause]
    submit(config, root, f"seed={number}", *overrides)
    stage, job = _newest(root)
    try:
        _await(lambda: _last(stage)[0] >= DISTURBED_AT)
        disturb(stage, job)
        old = _last(stage)
        while len(stage.state()["attempts"]) < 2 or "resumed_from" not in stage.state()["attempts"][1]:
            if len(stage.state()["attempts"]) < 2:
                old = _last(stage, old)
            _pause(stage)
        resumed = int(stage.state()["attempts"][1]["resumed_from"])
        _await(lambda: _last(stage)[0] > resumed)
        first = next(line["time"] for line in _lines(stage) if line["step"] > resumed)
        started = _start_of(job)
    finally:
        cancel = [sys.executable, str(REPOSITORY / "launch" / "cancel.py"), stage.digest12, "--runs", str(root)]
        subprocess.run(cancel, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        control("up")  # a lost node comes back
    return {"steps_lost": old[0] - resumed, "gap_s": first - old[1], "start_to_step_s": first - started}


def _newest(root: Path) -> tuple[StageFolder, str]:
    """The stage that was submitted last, and its job."""
    notes = [atomic.read_json(path) for path in (root / "jobs").glob("*.json")]
    tasks = [(note["submitted"], task) for note in notes for task in note["tasks"] if task["stage"] == "net"]
    task = max(tasks, key=lambda pair: pair[0])[1]
    folder = Root(root).stage(task["digest"])
    assert folder is not None
    return folder, str(task["job"])


def _lines(stage: StageFolder) -> list[dict[str, Any]]:
    text = stage.metrics.read_text() if stage.metrics.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _last(stage: StageFolder, before: tuple[int, float] = (0, 0.0)) -> tuple[int, float]:
    """Number and time of the last step; resuming drops those that come again, so what was seen before counts too."""
    lines = _lines(stage)
    return max(before, (int(lines[-1]["step"]), float(lines[-1]["time"])) if lines else before)


def _start_of(job: str) -> float:
    """When SLURM last started a job, unix time, to the second."""
    said = shell("scontrol", "show", "job", job)
    text = next(word for word in said.split() if word.startswith("StartTime="))
    return time.mktime(time.strptime(text.removeprefix("StartTime="), "%Y-%m-%dT%H:%M:%S"))


def _await(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + WITHIN_S
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {WITHIN_S:.0f} s")
        time.sleep(0.05)


def _pause(stage: StageFolder) -> None:
    if time.time() - stage.state()["updated"] > WITHIN_S:
        raise TimeoutError(f"{stage.path} has not come back within {WITHIN_S:.0f} s")
    time.sleep(0.05)


def drills(rounds: int) -> dict[str, list[dict[str, float]]]:
    """All causes in turns, on one cluster and one runs folder."""
    found: dict[str, list[dict[str, float]]] = {cause: [] for cause in CAUSES}
    with local_cluster(), tempfile.TemporaryDirectory(dir="/tmp") as folder:
        config, root = Path(folder) / "resume.yaml", Path(folder) / "runs"
        config.write_text(yaml.safe_dump(STAGE))
        for number in range(rounds):
            for index, cause in enumerate(CAUSES):
                found[cause].append(drill(cause, config, root, number * len(CAUSES) + index))
                print(f"  {cause}: {found[cause][-1]}", file=sys.stderr)
    return found


def run(*, quick: bool = False, rounds: int = 3) -> list[Row]:
    """Measure both, keep the figures, return the rows that have a target."""
    rounds = 1 if quick else rounds
    with tempfile.TemporaryDirectory() as folder:
        stops = checkpoint.measure(Path(folder), 5 if quick else 15)
    rows = checkpoint.rows_of(stops)
    reason = why_not()
    if reason is not None:
        print(f"resume: only the checkpoint is measured; {reason}", file=sys.stderr)
    found = drills(rounds) if reason is None else {}
    for cause, costs in found.items():
        most = CAUSES[cause][2]
        rows.append(row(f"resume, {cause}: steps lost", [cost["steps_lost"] for cost in costs], "steps", "<=", most))
    write("resume", rows, quick=quick, checkpoint=stops, drills=found, skipped=reason)
    return rows


def lines(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Seconds by cause, which have no target: a scheduler decides most of them."""
    said = []
    for cause, costs in found.items():
        gap, ours = (statistics.median(cost[key] for cost in costs) for key in ("gap_s", "start_to_step_s"))
        said.append(
            f"  {cause:<18} {gap:6.1f} s from the last step to the next, {ours:4.1f} s of them from the job's start"
        )
    return said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="each once: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds):
        print(entry.line)
    for line in lines(json.loads((REPOSITORY / "benchmarks" / "results" / "resume.json").read_text())["drills"]):
        print(line)


if __name__ == "__main__":
    main()
