"""What benchmarks/pipelines.py makes of its sweeps' results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pipelines import RUNS, Outcome, differences, ordered, outcomes, references, write
from kdscale.config.load import load

CE, KD = [0.80, 0.81, 0.82], [0.84, 0.845, 0.85]
PLAN = {
    "stages": {
        "t": {"parents": [{"digest": "data"}], "cost": {"train_flops": 3e12}},
        "s": {"parents": [{"digest": "data"}, {"digest": "t"}, {"digest": "t"}], "cost": {"train_flops": 2e12}},
    }
}


def row(top1: float | None, seed: int, stage: str = "student", **axes: str) -> dict[str, Any]:
    return {"trial": {**axes, "seed": str(seed)}, "stage": stage, "top1": top1, "model": "net", "digest": "s"}


def found() -> list[Outcome]:
    rows = [
        row(top1, seed, lam=lam, depth="8") for lam, all_ in (("0", CE), ("0.9", KD)) for seed, top1 in enumerate(all_)
    ]
    return outcomes("blkd", [*rows, row(0.9, 0, stage="teacher"), row(None, 3, lam="0.9")], PLAN)


def test_seeds_are_together_and_a_network_costs_what_it_rests_on() -> None:
    ce, kd = found()
    assert (ce.variant, ce.top1, kd.variant, kd.top1) == ("lam=0", CE, "lam=0.9", KD)
    assert ce.tflops == pytest.approx(5)
    assert references([ce, kd]) == {("ce", "net"): ce, ("blkd", "net"): kd}


def test_differences_are_to_references_of_the_same_network() -> None:
    ce, kd = found()
    known = references([ce, kd])
    other, wider = Outcome("wskd", "", "net", KD, 9.0), Outcome("wskd", "", "wide", KD, 9.0)
    to_ce, to_blkd = differences(other, known).values()
    assert to_ce is not None
    assert to_ce[0] == pytest.approx(0.035)
    assert to_blkd is not None
    assert to_blkd[0] == 0
    assert differences(wider, known) == {"ce": None, "blkd": None}
    assert differences(ce, known)["ce"] is None
    assert [one.name for one in ordered([other, kd, ce])] == ["blkd lam=0", "blkd lam=0.9", "wskd"]


def test_table_picture_and_figures_are_written(tmp_path: Path) -> None:
    every = ordered([*found(), Outcome("wskd", "", "net", KD, 9.0)])
    write(every, {"command": "python -m benchmarks.pipelines", "rows": 10, "epochs": 2}, tmp_path)
    said = (tmp_path / "pipelines.md").read_text()
    assert "| net | wskd | 3 | 84.50 ± " in said
    assert "| 9 |" in said
    assert json.loads((tmp_path / "pipelines.json").read_text())["pipelines"][0]["variant"] == "lam=0"
    assert (tmp_path / "pipelines.png").stat().st_size > 5000


@pytest.mark.parametrize("name", RUNS)
def test_every_run_is_a_sweep_of_its_config(name: str) -> None:
    run = RUNS[name]
    overrides = run.with_epochs(8)
    sweep = load(Path("configs/pipelines") / f"{run.config}.yaml", [*overrides, "seed=range(2)", "train.epochs=8"])
    assert all(trial.stages[run.final].train.epochs == 8 for trial in sweep.trials)
    variants = {", ".join(f"{k}={v}" for k, v in t.axes.items() if k not in ("seed", "depth")) for t in sweep.trials}
    assert run.reference.keys() <= variants
