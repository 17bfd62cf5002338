"""Pipelines against labels alone and plain distillation of the same network: one budget, three seeds, real data.

    python -m benchmarks.pipelines [--only NAME ...] [--rows 10000] [--epochs 8] [--seeds 3] [--runs FOLDER]

Runs configs/pipelines/*.yaml one after the other on this machine into one root, so that equal stages train once (the
same command goes on where it stopped), and writes pipelines.json, .md and .png: top-1 on test, its difference to both
references with Welch's two-sided 95 % interval, and the FLOPs of all that a network took, its teachers included.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import REPOSITORY, RESULTS, machine
from benchmarks.methods import LEVEL, Difference, difference, draw_differences, shown
from kdscale.report.statistics import interval

EACH_STAGE = "one budget: every stage trains for the same epochs on the same rows; WSKD makes up to two updates a batch"


@dataclass(frozen=True)
class Run:
    """One sweep of a pipeline.

    Attributes:
        config: its file under configs/pipelines.
        final: the stage whose network is compared.
        overrides: besides budget and seeds; EPOCHS stands for a stage's.
        reference: of trials by what they swept: `ce` or `blkd` where they are what others are compared with.
    """

    config: str
    final: str
    overrides: Sequence[str] = ()
    reference: Mapping[str, str] = field(default_factory=dict)

    def with_epochs(self, epochs: int) -> list[str]:
        """The overrides at a budget."""
        return [text.replace("EPOCHS", str(epochs)) for text in self.overrides]


RUNS: Mapping[str, Run] = {
    "blkd": Run(
        "blkd", "student", ["stages.student.student.depth=8,14", "params.lam=0,0.9"], {"lam=0": "ce", "lam=0.9": "blkd"}
    ),
    "takd": Run("takd", "r8"),
    "gskd": Run("gskd", "r14", ["grow.path=[r26,r8,r14]", "params.lam=0.1", "params.gam=0,0.05,0.8"]),
    "wskd": Run("wskd", "student"),
    "wskd_as_proposed": Run(
        "wskd",
        "student",
        [
            "stages.student.passes.wise.ce_wise.modifiers=[{name: misclassified}]",
            "stages.student.passes.wise.kd_wise.modifiers=[{name: misclassified}, {name: lift_target, delta: 1.0}]",
        ],
    ),
    "one": Run("one", "student"),
    "iakd": Run("iakd", "student", ["stages.student.train.epochs=EPOCHS"]),
    "iakd_linear": Run(
        "iakd",
        "student",
        [
            "stages.student.train={epochs: EPOCHS, schedule: onecycle, lr: 0.2, grad_clip: 1}",
            "stages.student.options.schedule=linear",
        ],
    ),
    "rekd": Run("rekd", "large", ["params.a=0,0.6"], {"a=0": "ce"}),
    "dekd": Run("dekd", "student", ["stages.student.teachers.teacher.from=teacher@epoch:1,teacher@best"]),
}


@dataclass(frozen=True)
class Outcome:
    """One network of one pipeline; shares in [0, 1]."""

    pipeline: str
    variant: str
    """What was swept, such as gam=0.8."""
    network: str
    top1: list[float]
    """Of each seed."""
    tflops: float
    """Of one seed's network and everything before it."""

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.pipeline} {self.variant}".strip()


def outcomes(name: str, rows: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> list[Outcome]:
    """The final networks of one sweep, by variant and network, seeds together."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["stage"] == RUNS[name].final and row["top1"] is not None:
            key = (_variant(row["trial"]), row["model"])
            found.setdefault(key, []).append((row["top1"], _tflops(row["digest"], plan)))
    return [
        Outcome(name, variant, network, [top1 for top1, _ in each], each[0][1])
        for (variant, network), each in found.items()
    ]


def _variant(trial: Mapping[str, str]) -> str:
    """What a trial swept, but for seeds and the depth, which the network says."""
    kept = {axis.rpartition(".")[2]: value for axis, value in trial.items()}
    return ", ".join(f"{axis}={value}" for axis, value in kept.items() if axis not in ("seed", "depth"))


def _tflops(digest: str, plan: Mapping[str, Any]) -> float:
    """Of a stage and all that it rests on, as planned."""
    waiting, taken = [digest], {digest}
    while waiting:
        for parent in plan["stages"][waiting.pop()]["parents"]:
            if parent["digest"] in plan["stages"] and parent["digest"] not in taken:
                taken.add(parent["digest"])
                waiting.append(parent["digest"])
    return sum(plan["stages"][one]["cost"]["train_flops"] for one in taken) / 1e12


# --------------------------------------------------------------------------- table and picture


def references(found: Sequence[Outcome]) -> dict[tuple[str, str], Outcome]:
    """By what it is (`ce`, `blkd`) and network."""
    return {
        (RUNS[one.pipeline].reference[one.variant], one.network): one
        for one in found
        if one.variant in RUNS[one.pipeline].reference
    }


def differences(one: Outcome, known: Mapping[tuple[str, str], Outcome]) -> dict[str, Difference | None]:
    """To each reference of the same network; None where there is none, or it is this one."""
    bases = {name: known.get((name, one.network)) for name in ("ce", "blkd")}
    return {
        name: None if base is None or base is one else difference(base.top1, one.top1) for name, base in bases.items()
    }


def markdown(found: Sequence[Outcome], facts: Mapping[str, Any]) -> str:
    """The table by network, with what was run and what can be read from it."""
    known = references(found)
    lines = [
        "# Pipelines compared", "", f"`{facts['command']}`", "",
        f"Fashion-MNIST, {facts['rows']:,} rows, {facts['epochs']} epochs a stage; {EACH_STAGE}.",
        "Top-1 on test after the last epoch; 95 % intervals, of differences by Welch, in points. TFLOPs: of all that a",
        "network took, its teachers included, as planned.",
        "", "![differences to labels alone and to plain distillation](pipelines.png)", "",
        "| network | pipeline | seeds | top-1 % | to ce | to blkd | TFLOPs |", "|---|---|---|---|---|---|---|",
        *(_line(one, known) for one in found), "", *READING,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


READING = (
    "What it shows: what each procedure, with the weights of its config, brings to these small networks at one budget.",
    "",
    "What it does not: whether a procedure is better. Nothing is tuned, training is a tenth of what papers give, and",
    "three seeds leave wide intervals: of many comparisons at 95 % one in twenty lies outside by chance. A pipeline",
    "whose teachers had to be trained costs more than labels alone, which the last column says. The configs of dekd,",
    "iakd and wskd were changed after a first run of this table: docs/decisions.md, Pipelines, says why and how.",
)


def _line(one: Outcome, known: Mapping[tuple[str, str], Outcome]) -> str:
    own = interval(one.top1)
    assert own is not None
    top1 = f"{100 * own.mean:.2f}" + (f" ± {100 * own.half:.2f}" if own.half is not None else "")
    cells = [shown(gap) if gap is not None else "-" for gap in differences(one, known).values()]
    return f"| {one.network} | {one.name} | {len(one.top1)} | {top1} | {' | '.join(cells)} | {one.tflops:.0f} |"


def picture(found: Sequence[Outcome], path: Path) -> None:
    """A column for each reference."""
    known = references(found)
    rows = []
    for one in reversed(found):
        label = f"{one.network.replace('resnet_cifar depth=', 'resnet ')}  {one.name}"
        cells = []
        for name, gap in differences(one, known).items():
            base = known.get((name, one.network))
            seeds = [value - sum(base.top1) / len(base.top1) for value in one.top1] if base is not None else []
            cells.append((gap, seeds if gap is not None else []))
        rows.append((label, cells))
    draw_differences(rows, ("ce of the same network", "blkd of the same network"), path)


# --------------------------------------------------------------------------- command


def run(name: str, given: argparse.Namespace) -> list[Outcome]:
    """Run one pipeline's sweep, as far as it is not done. Raises: SystemExit when it was stopped or failed."""
    chosen = RUNS[name]
    overrides = chosen.with_epochs(given.epochs)
    overrides += [f"data.limit={given.rows}", f"train.epochs={given.epochs}", f"seed=range({given.seeds})"]
    overrides += [f"name=compared-{name}", "tracking.uri=off", "engine.processes=1", "limits.parallel=2"]
    sweep = [sys.executable, "launch/sweep.py", f"configs/pipelines/{chosen.config}.yaml", *overrides, "--yes"]
    code = subprocess.run([*sweep, "--runs", str(given.runs.absolute())], cwd=REPOSITORY, check=False).returncode
    if code:
        raise SystemExit(code)
    newest = max(given.runs.glob(f"sweeps/compared-{name}-*/results.json"), key=lambda path: path.stat().st_mtime)
    plan = json.loads((newest.parent / "plan.json").read_text())
    return outcomes(name, json.loads(newest.read_text()), plan)


def ordered(found: Iterator[Outcome] | Sequence[Outcome]) -> list[Outcome]:
    """By network, the references first."""
    every = list(found)
    known = [id(one) for one in references(every).values()]
    return sorted(every, key=lambda one: (len(one.network), one.network, id(one) not in known, one.name))


def write(found: Sequence[Outcome], facts: Mapping[str, Any], out: Path) -> None:
    """Write pipelines.json, .md and .png."""
    out.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "level": LEVEL, **facts, "pipelines": [asdict(one) for one in found], **machine()}
    (out / "pipelines.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "pipelines.md").write_text(markdown(found, facts))
    picture(found, out / "pipelines.png")


def main() -> None:
    """Run what is not done, and write table and picture."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(RUNS), default=list(RUNS), metavar="NAME")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = ordered([one for name in given.only for one in run(name, given)])
    command = shlex.join(["python", "-m", "benchmarks.pipelines", *sys.argv[1:]])
    write(found, {"command": command, "rows": given.rows, "epochs": given.epochs}, given.out.absolute())
    known = references(found)
    for one in found:
        print(_line(one, known))


if __name__ == "__main__":
    main()
