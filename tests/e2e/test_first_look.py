"""What a stage writes down before it trains, for the report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kdscale.jobs.inline import run_one
from kdscale.train.stop import Stop
from tests.e2e.conftest import Make


def test_the_first_look_is_at_a_micro_batch_of_training(sandbox: Make) -> None:
    """In its shape, so that nothing is compiled, chosen or kept in memory for another one."""
    box = sandbox("look", "train.batch_size=48", "train.accumulation=2", "train.epochs=1")
    for stage in box.plan.todo:
        assert run_one(box.root, stage, Stop()) == "done"
    folder = next((box.root.path / "stages").glob("student-*"))
    look = json.loads((folder / "step0.json").read_text())
    assert look["samples"] == 24
    assert [(term["id"], term["weight"]) for term in look["terms"]] == [("ce", 0.5), ("kd", 0.5)]
    assert sum(term["gradient_share"] for term in look["terms"]) == pytest.approx(1)
    assert all(term["gradient_norm"] > 0 for term in look["terms"])
    with np.load(folder / "views.npz") as shown:
        assert shown["images"].shape == (24, 16, 16, 1)
        assert shown["images"].std() > 0
        assert shown["teacher_top1"].shape == (24,)
