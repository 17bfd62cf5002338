"""The shipped pipeline from a transformer to a convolutional network, run small on Fashion-MNIST itself."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.small_sweep import untimed_metrics
from tests.unit.data.places import FASHION

SMALL = [
    "data.limit=192", "data.limit_test=100", "train.epochs=1", "train.batch_size=32", "train.precision=fp32",
    "train.log_every_steps=1", "engine.processes=1", "stages.teacher.student.depth=2",
    "stages.teacher.student.embed_dim=24",
]  # fmt: skip
LAST = "{module: blocks.1, as: map}"
FEATURES = {
    "at": f"{{student: stage3, teacher: {LAST}}}", "sp": f"{{student: stage3, teacher: {LAST}}}",
    "rkd": "{student: pooled, teacher: {module: norm, as: cls}}",
    "crd": "{student: pooled, teacher: {module: blocks.1, as: pooled}}",
    "pkt": "{student: pooled, teacher: {module: blocks.1, as: pooled}}",
    "ickd": f"{{student: stage3, teacher: {LAST}}}", "fitnet": f"{{student: stage3, teacher: {LAST}}}",
}  # fmt: skip


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no Fashion-MNIST in {FASHION}")
def test_a_transformer_teaches_a_convolutional_network_by_every_feature_loss(tmp_path: Path, root: Path) -> None:
    losses = ", ".join(f"{{name: {name}, weight: 0.01, taps: {taps}}}" for name, taps in FEATURES.items())
    sweep = load(
        root / "configs" / "pipelines" / "vit_to_cnn.yaml", [*SMALL, f"stages.student.losses=[{{name: ce}}, {losses}]"]
    )
    runs = Root(tmp_path)
    plan = make_plan(sweep, runs)
    prepare_folders(runs, plan, retry_failed=False)
    assert set(run_inline(runs, plan, lambda line: None).values()) == {"done"}
    folder = runs.stage(plan.trials[0].stages["student"])
    assert folder is not None
    look = json.loads((folder.path / "step0.json").read_text())
    norms = {term["id"]: term["gradient_norm"] for term in look["terms"]}
    assert norms.keys() == {"ce", *FEATURES}
    assert all(0 < norm < float("inf") for norm in norms.values()), norms
    steps = [line for line in untimed_metrics(folder) if "train/loss" in line]
    values = [line[f"train/term/{name}"] for line in steps for name in FEATURES]
    assert len(values) == 6 * len(FEATURES)
    assert all(map(math.isfinite, values))
    written = yaml.safe_load((folder.path / "stage.yaml").read_text())
    assert written["spec"]["passes"]["main"][1]["taps"]["teacher"] == [{"module": "blocks.1", "as": "map"}]
