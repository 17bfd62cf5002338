"""The shipped pipeline of FSP, run small: its networks differ from one start, and its ensemble is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.matrix import MATRIX

NETS = ("net1", "net2", "net3")
SMALL = [
    "data={name: synthetic, val_fraction: 0, options: {train_rows: 96, test_rows: 50, size: 16}}",
    "train={epochs: 1, batch_size: 32, precision: fp32}", "stages.teacher.train.epochs=1", "engine.processes=1",
    *(f"stages.{name}.student={{model: resnet_cifar, depth: 8, widths: [4, 8, 16]}}" for name in ("teacher", *NETS)),
]  # fmt: skip


@pytest.mark.parametrize("first", ["copied", pytest.param("shuffled", marks=MATRIX)])
def test_three_networks_from_one_teacher_answer_as_one(first: str, tmp_path: Path, root: Path) -> None:
    sweep = load(root / "configs" / "pipelines" / "fsp.yaml", [*SMALL, f"first={first}"])
    runs = Root(tmp_path)
    plan = make_plan(sweep, runs)
    prepare_folders(runs, plan, retry_failed=False)
    assert set(run_inline(runs, plan, lambda line: None).values()) == {"done"}
    states = {name: runs.stage(digest).state() for name, digest in plan.trials[0].stages.items()}  # type: ignore[union-attr]
    starts = [states[net]["consumed"]["init_from"] for net in NETS]
    inits = [name for name in states if name.startswith("init")]
    assert set(starts) == {states[init]["weights"]["last"] for init in inits}
    assert len({*starts}) == len(inits) == {"copied": 1, "shuffled": 3}[first]
    assert len({states[net]["weights"]["last"] for net in NETS}) == 3

    heard = states["ensemble"]["results"]["teacher_top1"]
    assert list(heard) == ["together", *NETS]
    assert {net: heard[net] for net in NETS} == {net: states[net]["results"]["top1"] for net in NETS}
    assert 0 <= heard["together"] <= 1
