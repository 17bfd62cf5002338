"""A stage of kdscale for benchmarks/gpu.py: ResNet-18 on made-up images, under the settings of its bare loop."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmarks.figures import REPOSITORY
from benchmarks.stages import finish
from kdscale.config.load import load
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan

ROWS = 20_000


def planned(folder: Path, *, size: int, batch: int) -> tuple[Path, str]:
    """A runs root with its data converted, and the digest of the stage that is to be trained there."""
    config = {
        "name": "gpu",
        "data": {
            "name": "synthetic", "val_fraction": 0, "augment": {"crop": 4, "flip": True},
            "options": {"train_rows": ROWS if size == 32 else 256, "test_rows": 10, "size": size, "channels": 3},
        },
        "train": {"epochs": 10_000, "batch_size": batch, "lr": 0.1, "precision": "bf16", "nesterov": True},
        "engine": {"processes": 1},
        "tracking": {"uri": "off"},
        "plugins": {"path": [str(REPOSITORY / "benchmarks")], "allow": ["gpu_nets"]},
        "stages": {"student": {"student": {"model": "gpu_nets:ResNet18"}, "losses": [{"name": "ce"}]}},
    }  # fmt: skip
    path = folder / "gpu.yaml"
    path.write_text(yaml.safe_dump(config))
    root = Root(folder / "runs")
    plan = make_plan(load(str(path), []), root)
    prepare_folders(root, plan, retry_failed=False)
    (student,) = (stage for stage in plan.stages.values() if stage.name == "student")
    finish(plan, plan.stages[student.definition["data"]["store"]], root)
    return root.path, student.digest
