"""A loss that is not finite once: `skip` leaves one update out, `rollback` goes back and passes over the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.errors import NonFiniteLoss
from kdscale.jobs.inline import run_one
from kdscale.train.stage import run_stage
from kdscale.train.stop import Stop
from tests.e2e.conftest import Make, Sandbox

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    """Answers the twentieth training batch with nan, once."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)
        self.calls = 0

    def forward(self, x):
        if self.training and len(x) > 4:
            self.calls += 1
            if self.calls == 20:
                x = x * float("nan")
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
'''


@pytest.fixture
def student(sandbox: Make, tmp_path: Path) -> tuple[Sandbox, str]:
    (tmp_path / "once_nan.py").write_text(NET)

    def make(mode: str) -> tuple[Sandbox, str]:
        box = sandbox(
            mode, f"train.on_nonfinite={mode}", "stages.student.student={model: 'once_nan:Net'}",
            f"plugins.path=[{tmp_path}]", "plugins.allow=[once_nan]",
        )  # fmt: skip
        for stage in box.plan.todo:
            if stage.name != "student":
                assert run_one(box.root, stage, Stop()) == "done"
        return box, next(d for d, s in box.plan.stages.items() if s.name == "student")

    return make  # type: ignore[return-value]


def test_stop_names_term_and_step_and_keeps_no_checkpoint_past_it(student) -> None:
    box, digest = student("stop")
    with pytest.raises(NonFiniteLoss, match=r"term (ce|kd) became nan or inf at step 19 on rank 0"):
        run_stage(box.root.path, digest)
    kept = [int(p.name.removeprefix("step_")) for p in box.folder("student").checkpoints.glob("step_*")]
    assert kept
    assert max(kept) <= 19


def test_skip_leaves_one_update_out(student) -> None:
    box, digest = student("skip")
    assert run_stage(box.root.path, digest) == "done"
    assert _last_training_line(box)["train/skipped"] == 1
    assert all(value == value for line in box.metrics("student") for value in line.values())  # no nan anywhere


def test_rollback_goes_back_and_passes_over_the_batch(student) -> None:
    box, digest = student("rollback")
    assert run_stage(box.root.path, digest) == "done"
    lines = box.metrics("student")
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(set(steps))
    assert _last_training_line(box)["train/skipped"] == 1


def _last_training_line(box: Sandbox) -> dict[str, float]:
    return next(line for line in reversed(box.metrics("student")) if "train/loss" in line)
