"""A sweep of 1,000 trials with one teacher: planning it, and handing it to SLURM.

    python -m benchmarks.submit [--trials 1000] [--rounds 3] [--quick]

Planning is `--dry-run` in a process of its own. Submitting goes to the cluster of `slurm/local-cluster` with its
partition down, so that nothing runs; bare is `sbatch` of the very same scripts, in turns. What kdscale writes before
the last sbatch (a folder, a definition and a state for each stage, submitit's pickles) is counted apart from sbatch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cluster import PROFILE, local_cluster, shell, why_not
from benchmarks.figures import REPOSITORY, RESULTS, Row, row, write
from kdscale.config.load import load
from kdscale.jobs.prepare import prepare_folders
from kdscale.jobs.slurm.profile import load_profile
from kdscale.jobs.slurm.submit import Submission
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan

TRIALS = 1000
PLAN_GOAL_S, PLAN_GOAL_MB, SUBMIT_GOAL = 30.0, 1000.0, 1.2
NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
SWEEP: dict[str, Any] = {
    "name": "scale",
    "data": {"name": "synthetic", "options": {"train_rows": 720, "test_rows": 100, "size": 16}, "val_fraction": 0.1},
    "train": {"epochs": 3, "batch_size": 32, "lr": 0.05, "precision": "fp32"},
    "tracking": {"uri": "off"},
    "stages": {
        "teacher": {"seed": 0, "train": {"lr": 0.05}, "student": NET, "losses": [{"name": "ce"}]},
        "student": {
            "student": NET,
            "teachers": {"teacher": {"from": "teacher"}},
            "losses": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}],
        },
    },
}  # fmt: skip


def seeds(trials: int) -> str:
    """Trials that differ by their seed."""
    return f"seed=range({trials})"


def rates(trials: int) -> str:
    """Trials that differ by their learning rate."""
    return "train.lr=" + ",".join(f"{0.0001 * number:.4f}" for number in range(1, trials + 1))


# ------------------------------------------------------------------------------- planning


def plan_once(config: Path, override: str, root: Path) -> tuple[float, float]:
    """Seconds and peak MB of a dry run."""
    command = [sys.executable, str(REPOSITORY / "launch" / "sweep.py"), str(config), override]
    command += ["--cluster", str(PROFILE), "--runs", str(root), "--dry-run"]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"--dry-run ended with {child.returncode}")
    return time.perf_counter() - begun, used.ru_maxrss / 1024


# ------------------------------------------------------------------------------- submitting


@dataclass
class Calls:
    """When sbatch was called."""

    seconds: list[float] = field(default_factory=list)
    last: float = 0.0


@contextmanager
def calls_of_sbatch() -> Iterator[Calls]:
    """Time the commands that submitit runs."""
    from submitit.core.utils import CommandFunction

    found, real = Calls(), CommandFunction.__call__

    def timed(self: Any, *args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        result = real(self, *args, **options)
        found.last = time.perf_counter()
        found.seconds.append(found.last - begun)
        return result

    CommandFunction.__call__ = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        CommandFunction.__call__ = real  # type: ignore[method-assign]


def ours(plan: Plan, root: Root) -> dict[str, float]:
    """Submit a plan to a root that has none of its stages yet."""
    submission = Submission(root, plan, load_profile(str(PROFILE)), lambda text: None)
    with calls_of_sbatch() as calls:
        begun = time.perf_counter()
        prepare_folders(root, plan, retry_failed=False)
        submission.submit()
        end = time.perf_counter()
    return {
        "sbatch_s": sum(calls.seconds), "plan_to_last_sbatch_s": calls.last - begun, "whole_s": end - begun,
        "calls": len(calls.seconds),
    }  # fmt: skip


def bare(scripts: list[tuple[str, str]]) -> float:
    """Seconds of sbatch for the same scripts, given as pairs of the number that they had and their text."""
    numbers: dict[str, str] = {}
    spent = 0.0
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        for old, text in scripts:
            file.seek(0)
            file.truncate()
            file.write(re.sub(r"(?<=:)\d+", lambda found: numbers.get(found[0], found[0]), text))
            file.flush()
            begun = time.perf_counter()
            said = shell("sbatch", file.name)
            spent += time.perf_counter() - begun
            numbers[old] = said.split()[-1]
    return spent


def scripts_of(root: Root) -> list[tuple[str, str]]:
    """What was submitted, in order."""
    found = {path.parent.name: path.read_text() for path in (root.path / "jobs" / "slurm").glob("*/*_submission.sh")}
    return sorted(found.items(), key=lambda pair: int(pair[0]))


def submissions(config: Path, folder: Path, trials: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns, on a cluster where nothing may run."""
    found: dict[str, Any] = {"ours": [], "bare_s": []}
    with local_cluster():
        shell("scontrol", "update", "partition=low", "state=down")
        for number in range(rounds):
            root = Root(folder / f"runs{number}")
            plan = make_plan(load(str(config), [seeds(trials)]), root)
            found["ours"].append(ours(plan, root))
            scripts = scripts_of(root)
            shell("scancel", "--quiet", "--state=PENDING", "--partition=low")
            found["bare_s"].append(bare(scripts))
            shell("scancel", "--quiet", "--state=PENDING", "--partition=low")
    return found


def run(*, quick: bool = False, rounds: int = 3, trials: int = TRIALS) -> list[Row]:
    """Measure, keep the figures, return the rows."""
    rounds, trials = (1, min(trials, 100)) if quick else (rounds, trials)
    reason = why_not()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "scale.yaml"
        config.write_text(yaml.safe_dump(SWEEP))
        sweeps = [seeds(trials), rates(trials)] * rounds
        plans = [plan_once(config, override, Path(folder) / "none") for override in sweeps]
        found = submissions(config, Path(folder), trials, rounds) if reason is None else {}
    rows = [
        row(f"plan {trials:,} trials", [seconds for seconds, _ in plans], "s", "<=", PLAN_GOAL_S),
        row(f"plan {trials:,} trials: peak", [peak for _, peak in plans], "MB", "<=", PLAN_GOAL_MB),
    ]
    if found:
        ratios = [o["sbatch_s"] / b for o, b in zip(found["ours"], found["bare_s"], strict=True)]
        rows.append(row(f"submit {trials:,}: sbatch to bare sbatch", ratios, "x", "<=", SUBMIT_GOAL))
    else:
        print(f"submit: only planning is measured; {reason}", file=sys.stderr)
    write("submit", rows, quick=quick, trials=trials, plans=plans, submissions=found, skipped=reason)
    return rows


def line(measured: dict[str, Any]) -> str:
    """What has no target: files that a stage has and a bare array has not."""
    spent = statistics.median(one["plan_to_last_sbatch_s"] for one in measured["submissions"]["ours"])
    alone = statistics.median(measured["submissions"]["bare_s"])
    each = 1e3 * (spent - alone) / measured["trials"]
    return f"  from the plan to the last sbatch {spent:.2f} s, bare {alone:.3f} s: {each:.2f} ms a stage for its files"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a hundred trials, once: for trying out only")
    chosen = parser.parse_args()
    for entry in run(quick=chosen.quick, rounds=chosen.rounds, trials=chosen.trials):
        print(entry.line)
    measured = json.loads((RESULTS / "submit.json").read_text())
    if measured["submissions"]:
        print(line(measured))


if __name__ == "__main__":
    main()
