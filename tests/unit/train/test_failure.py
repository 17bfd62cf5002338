from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdscale import turns
from kdscale.api import Losses, Outputs
from kdscale.errors import NonFiniteLoss
from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.failures import failures_of
from kdscale.train.failure import Recent, leave_record
from kdscale.train.metrics import Meter

NAN = float("nan")


class Answering(nn.Module):
    taps = ("stage1",)

    def forward(self, x: torch.Tensor) -> Outputs:
        return Outputs(x, [10 * x])


class Rows:
    """A loader of two batches an epoch."""

    steps_per_epoch = 2

    def view_of(self, epoch: int) -> int:
        return epoch % 2

    def rows(self, epoch: int, start: int = 0) -> list[Any]:
        return [torch.tensor([100 * epoch + 10 * index]) for index in range(start, 2)]


def run(steps: int, bad: int, remembers: int, norm: torch.Tensor | None = None) -> tuple[Meter, Recent]:
    student = Answering()
    meter, recent = Meter(["ce"], torch.device("cpu"), remembers=remembers), Recent(student, remembers, lambda: norm)
    for step in range(steps):
        for micro in range(2):
            student(torch.tensor([[float(step), float(-step - micro)]]))
        value = torch.tensor(NAN if step == bad else float(step))
        meter.add({"main": Losses(value, {"ce": value})}, step)
        recent.note(step)
    return meter, recent


def test_what_a_step_had_is_known_some_steps_later() -> None:
    meter, recent = run(steps=6, bad=3, remembers=4, norm=torch.tensor(7.0))
    assert recent.ranges(3) == {"logits": [-4.0, 3.0], "tap stage1": [-40.0, 30.0]}
    assert recent.gradient_norm(3) == 7.0
    assert meter.values_at(2) == {"loss": 2.0, "ce": 2.0}
    assert meter.values_at(3)["ce"] != meter.values_at(3)["ce"]


def test_what_is_gone_is_left_out() -> None:
    meter, recent = run(steps=6, bad=1, remembers=4)
    assert (meter.values_at(1), recent.ranges(1), recent.gradient_norm(1)) == ({}, {}, None)
    assert recent.gradient_norm(5) is None, "nobody measured it"


def test_evaluation_is_not_listened_to() -> None:
    student = Answering().eval()
    recent = Recent(student, 2, lambda: None)
    student(torch.ones(1, 1))
    recent.note(0)
    assert recent.ranges(0) == {}


@pytest.mark.parametrize("step", [3, None])
def test_every_rank_leaves_a_record_of_the_step_that_the_error_names(tmp_path: Path, step: int | None) -> None:
    folder = StageFolder(tmp_path)
    folder.logs.mkdir()
    meter, recent = run(steps=4, bad=3, remembers=4)
    turns.run(2, lambda: leave_record(folder, NonFiniteLoss("nan", step), Rows(), meter, recent))
    found = failures_of(folder.logs)
    if step is None:
        assert not found
        return
    assert [(one["rank"], one["world"], one["step"]) for one in found] == [(0, 2, 3), (1, 2, 3)]
    assert (found[0]["epoch"], found[0]["view"], found[0]["rows"]) == (1, 1, [110])
    assert found[0]["ranges"]["logits"] == [-4.0, 3.0]
    assert failures_of(folder.logs, 2) == []


def test_a_full_disk_does_not_hide_the_failure(tmp_path: Path) -> None:
    meter, recent = run(steps=1, bad=0, remembers=1)
    (tmp_path / "logs").write_text("no folder")
    leave_record(StageFolder(tmp_path), NonFiniteLoss("nan", 0), Rows(), meter, recent)
