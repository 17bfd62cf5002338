"""What sweeps that are disturbed on purpose train on, and what is compared of them."""

from __future__ import annotations

import json
from typing import Any

from kdscale.pipeline.artifacts import StageFolder

SMALL_DATA: dict[str, Any] = {
    "name": "synthetic", "augment": {"crop": 2, "flip": True}, "val_fraction": 0.1,
    "options": {"train_rows": 720, "test_rows": 100, "size": 16},
}  # fmt: skip
SMALL_TRAIN: dict[str, Any] = {
    "epochs": 3, "batch_size": 32, "lr": 0.05, "log_every_steps": 4, "checkpoint_every_steps": 7, "precision": "fp32",
}  # fmt: skip


def untimed_metrics(folder: StageFolder) -> list[dict[str, Any]]:
    """A stage's metrics without what the clock decides; none before it has logged any."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()] if folder.metrics.exists() else []
    timed = ("time/", "train/images_per_s")
    return [
        {"step": line["step"], **{k: v for k, v in line["metrics"].items() if not k.startswith(timed)}}
        for line in lines
    ]
