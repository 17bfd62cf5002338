"""A finished small sweep whose students read teacher caches: of every kind of record, filled in both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdscale import atomic
from kdscale.config.load import load
from kdscale.jobs.cache_places import CachePlace
from kdscale.jobs.inline import run_one
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from kdscale.pipeline.planned import Plan
from kdscale.train.stop import Stop

NOT_TRAINED = ("exact", "mixed")
NET: dict[str, Any] = {"model": "resnet_cifar", "depth": 8, "widths": [4, 4, 8]}
TERMS: list[dict[str, Any]] = [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5, "temperature": 4}]


def student(**cache: Any) -> dict[str, Any]:
    """A student that reads a cache of the teacher."""
    teachers = {"t": {"from": "teacher", "cache": {"views": 2, "block_rows": 32, **cache}}}
    return {"student": NET, "teachers": teachers, "losses": TERMS}


MIXED = {"data": {"augment": {"mixup": 0.4}}}
CONFIG: dict[str, Any] = {
    "name": "small",
    "data": {
        "name": "synthetic", "augment": {"crop": 2, "flip": True}, "val_fraction": 0.1, "loader": "torch",
        "options": {"train_rows": 120, "test_rows": 20, "size": 16},
    },
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.05, "precision": "fp32"},
    "engine": {"processes": 1},
    "stages": {
        "teacher": {"student": NET, "losses": [{"name": "ce"}], "train": {"epochs": 1}},
        "exact": student(record="dense_fp32"),
        "sparse": student(record="topk", k=3, fill="on_use"),
        "mixed": student(record="topk", k=3, residual="sampled", draws=2, pooled=True) | MIXED,
    },
}  # fmt: skip


def plan_of(root: Root, folder: Path, *overrides: str, **changes: Any) -> Plan:
    """Plan the sweep, or a changed one; its folders are made, nothing runs."""
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, **changes}))
    plan = make_plan(load(config, overrides), root)
    prepare_folders(root, plan, retry_failed=False)
    sweep = root.create_sweep(plan.name, plan.digest)
    atomic.write_json(sweep.plan_file, plan.document())
    return plan


def run_small_sweep(folder: Path) -> Root:
    """Run it under folder/runs, which may be copied anywhere afterwards.

    Of the students only the one that fills its cache itself trains: the others would add nothing but time.
    """
    root = Root(folder / "runs")
    plan = plan_of(root, folder)
    teacher = next(stage.digest for stage in plan.stages.values() if stage.name == "teacher")
    for digest, stage in plan.stages.items():
        found = root.stage(digest)
        assert found is not None
        if stage.name not in NOT_TRAINED:
            assert run_one(root, stage, Stop()) == "done", found.state()
            continue
        weights = root.stage(teacher)
        assert weights is not None
        found.write_state(state="done", consumed={"t": weights.state()["weights"]["last"]})
    return root


def damage(place: CachePlace, block: int) -> None:
    """Flip a byte of a block."""
    file, offset = place.opened.place(block)
    with file.open("r+b") as opened:
        opened.seek(offset + 3)
        byte = opened.read(1)[0]
        opened.seek(offset + 3)
        opened.write(bytes([byte ^ 0xFF]))
