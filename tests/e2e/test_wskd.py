"""The shipped pipeline with two updates a batch: planned as it is, run small, killed and resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.e2e.conftest import Make
from tests.e2e.test_cache import LIVE
from tests.e2e.test_kills import KillAt
from tests.matrix import MATRIX
from tests.plugins.drowsy import SLOW_STUDENT
from tests.small_sweep import SMALL_DATA, untimed_metrics

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "pipelines" / "wskd.yaml"
SMALL = [
    f"data={yaml.safe_dump(SMALL_DATA, default_flow_style=True, width=10_000).strip()}",
    "data.options.train_rows=200", "data.loader=torch", "train.epochs=1", "train.batch_size=36", "train.precision=fp32",
    "train.log_every_steps=1", "engine.processes=1",
    "stages.teacher.student={model: resnet_cifar, depth: 8, widths: [4, 8, 16]}",
    "stages.student.student={model: resnet_cifar, depth: 8, widths: [4, 8, 16]}",
]  # fmt: skip


def test_it_is_planned_as_it_is_shipped(tmp_path: Path) -> None:
    plan = make_plan(load(CONFIG), Root(tmp_path))
    (student,) = [stage for stage in plan.stages.values() if stage.name == "student"]
    passes = student.definition["spec"]["passes"]
    assert {name: [term["id"] for term in terms] for name, terms in passes.items()} == {
        "general": ["ce", "kd"], "wise": ["ce_wise", "kd_wise"],
    }  # fmt: skip
    fixed = make_plan(load(CONFIG, ["stages.student.options={fixed_bn: [wise]}"]), Root(tmp_path))
    assert student.digest not in fixed.stages
    cost = student.cost
    assert 5.8 < cost.step_flops / cost.flops < 6  # forward and backward of both passes, images' gradients aside
    assert cost.train_flops == cost.images * cost.step_flops  # the teacher answers from its cache


def test_it_runs_and_says_how_many_answers_it_repairs(tmp_path: Path) -> None:
    root = Root(tmp_path)
    plan = make_plan(load(CONFIG, SMALL), root)
    prepare_folders(root, plan, retry_failed=False)
    assert set(run_inline(root, plan, lambda line: None).values()) == {"done"}
    folder = root.stage(plan.trials[0].stages["student"])
    assert folder is not None
    steps = [line for line in untimed_metrics(folder) if "train/loss" in line]
    picked = [line["train/picked/wise"] for line in steps]
    assert len(picked) == 5
    assert all(0 <= count <= 36 and count == int(count) for count in picked)
    assert max(picked) > 0
    assert all((line["train/term/kd_wise"] > 0) == (line["train/picked/wise"] > 0) for line in steps)
    look: list[dict[str, Any]] = json.loads((folder.path / "step0.json").read_text())["terms"]
    assert {term["id"]: term["pass"] for term in look} == {
        "ce": "general", "kd": "general", "ce_wise": "wise", "kd_wise": "wise",
    }  # fmt: skip


PASSES = (
    "stages.student.losses=null",
    "stages.student.passes={general: [{name: ce}, {name: kd}], wise: [{name: ce, id: ce_wise, modifiers: [{name: "
    "misclassified}]}, {name: kd, id: kd_wise, modifiers: [{name: misclassified}, {name: lift_target}]}]}",
)


@MATRIX
@pytest.mark.parametrize(
    ("world", "steps", "number", "only_rank"),
    [
        (1, [8], signal.SIGKILL, None),
        (2, [12], signal.SIGKILL, 1),
        (2, [8, 28], signal.SIGTERM, None),
    ],
)
def test_bitwise_the_same_after_kills(
    sandbox: Make, world: int, steps: list[int], number: signal.Signals, only_rank: int | None
) -> None:
    overrides = [f"engine.processes={world}", *SLOW_STUDENT, *PASSES]
    calm, disturbed = sandbox("calm", *overrides), sandbox("disturbed", *overrides)
    assert set(calm.run().values()) == {"done"}
    kill = KillAt(steps, number, only_rank=only_rank)
    assert set(disturbed.run(kill).values()) == {"done"}
    assert kill.killed == len(steps)
    assert disturbed.weights("student") == calm.weights("student")
    assert disturbed.metrics("student") == calm.metrics("student")


@MATRIX
def test_a_cached_teacher_gives_the_weights_of_a_live_one(sandbox: Make) -> None:
    common = (*LIVE, "engine.processes=1", *PASSES)
    live = sandbox("live", *common)
    cache = "stages.student.teachers.teacher.cache={record: dense_fp32, block_rows: 64, views: 2}"
    cached = sandbox("cached", *common, cache)
    assert set(live.run().values()) == set(cached.run().values()) == {"done"}
    one, other = (load_file(box.folder("student").path / "student.safetensors") for box in (live, cached))
    assert all(other[name].equal(tensor) for name, tensor in one.items())  # the files name their digests, which differ
