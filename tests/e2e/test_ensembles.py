"""Two teachers heard as one teach the same, bit for bit, whether networks or records answer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from kdscale.config.load import load
from kdscale.jobs.inline import run_inline
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN, untimed_metrics

CACHE = {"record": "dense_fp32"}
BOTH = {"mean": ["a", "b"], "of": "probabilities", "weights": [0.7, 0.3]}


def teacher(seed: int) -> dict[str, Any]:
    student = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
    return {"student": student, "losses": [{"name": "ce"}], "train": {"epochs": 1}, "seed": seed}


def student(**cached: dict[str, str]) -> dict[str, Any]:
    """Two epochs under two teachers, of which those named are cached."""
    teachers = {role: {"from": stage, **({"cache": cached[role]} if role in cached else {})}
                for role, stage in (("a", "t1"), ("b", "t2"))}  # fmt: skip
    return {
        "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 8]},
        "teachers": teachers | {"both": BOTH},
        "losses": [{"name": "ce", "weight": 0.5}, {"name": "kd", "teacher": "both", "weight": 0.5}],
        "train": {"epochs": 2},
    }


STAGES = {
    "t1": teacher(0), "t2": teacher(1), "live": student(), "cached": student(a=CACHE, b=CACHE),
    "mixed": student(b=CACHE),
}  # fmt: skip


def test_cached_and_live_members_give_the_same_student(tmp_path: Path) -> None:
    config = tmp_path / "ensembles.yaml"
    data = SMALL_DATA | {"options": SMALL_DATA["options"] | {"train_rows": 200}}
    document = {"name": "ensembles", "data": data, "train": SMALL_TRAIN, "engine": {"processes": 1}, "stages": STAGES}
    config.write_text(yaml.safe_dump(document))
    root = Root(tmp_path / "runs")
    plan = make_plan(load(config), root)
    prepare_folders(root, plan, retry_failed=False)
    states = run_inline(root, plan, lambda line: None)
    assert set(states.values()) == {"done"}
    assert [stage.kind for stage in plan.stages.values()].count("fill") == 2

    folders = {name: root.stage(digest) for name, digest in plan.trials[0].stages.items()}
    weights = {name: load_file(folder.path / "student.safetensors") for name, folder in folders.items() if folder}
    metrics = {name: untimed_metrics(folder) for name, folder in folders.items() if folder}
    for name in ("cached", "mixed"):
        assert equal(weights[name], weights["live"]), name
        assert metrics[name] == metrics["live"]
    live = folders["live"]
    assert live is not None
    assert list(live.state()["results"]["agreement"]) == ["both", "a", "b"]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
