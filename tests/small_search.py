"""A small search that tests run: one good learning rate among hopeless ones, so that it is known who wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from kdscale.config.load import load
from kdscale.config.search import SearchConfig
from tests.small_sweep import SMALL_DATA, SMALL_TRAIN

NET = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
SETTINGS: dict[str, Any] = {
    "method": "optuna",
    "trials": 6,
    "metric": "val/top1",
    "sampler": {"name": "random", "seed": 6},  # draws 0.1188 and then five rates below 0.0011
    "prune": {"after_trials": 1},
    "space": {"stages.student.train.lr": {"loguniform": [1.0e-7, 0.2]}},
}
EXPERIMENT: dict[str, Any] = {
    "name": "hunt",
    "data": SMALL_DATA,
    "train": SMALL_TRAIN,
    "engine": {"processes": 1},
    "tracking": {"uri": "off"},
    "stages": {
        "teacher": {"student": NET, "losses": [{"name": "ce"}], "train": {"epochs": 1}},
        "student": {
            "student": NET,
            "teachers": {"teacher": {"from": "teacher"}},
            "losses": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}],
            "train": {"epochs": 8},
        },
    },
    "sweep": SETTINGS,
}  # fmt: skip


def settings(tmp_path: Path, *overrides: str) -> SearchConfig:
    """The search of the small experiment, as loaded."""
    found = load(written(tmp_path), overrides).search
    assert found is not None
    return found


def written(tmp_path: Path, **changes: Any) -> Path:
    """The config as a file, with settings of its search changed."""
    path = tmp_path / "hunt.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT | {"sweep": SETTINGS | changes}))
    return path


def asked_in(folder: Path) -> list[dict[str, Any]]:
    """The trials of a search, from its search.json; none before there is one."""
    document = folder / "search.json"
    return list(json.loads(document.read_text())["asked"]) if document.exists() else []
