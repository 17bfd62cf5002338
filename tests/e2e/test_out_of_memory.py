"""A step that does not fit: the stage fails with its peak and a setting that would fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Make

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, way):
        super().__init__()
        self.way = way
        self.head = nn.Linear(256, num_classes)

    def forward(self, x):
        if self.training and len(x) > 8 and self.way == "cpu":
            torch.empty(10**15)
        if self.training and len(x) > 8 and self.way == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total ...")
        return self.head(x.flatten(1))
"""
CAUSES = {
    "cpu": r"4,?000,000 GB more asked for, at batch 32 a rank: not one sample would fit",
    "cuda": r"0\.5 GB more asked for, at batch 32 a rank: train\.accumulation=\d+ would need about \d",
}


@pytest.mark.parametrize("way", list(CAUSES))
def test_a_stage_says_its_peak_and_what_would_fit(sandbox: Make, tmp_path: Path, way: str) -> None:
    (tmp_path / "large.py").write_text(NET)
    box = sandbox(
        "runs", "stages.teacher=null", f"plugins.path=[{tmp_path}]", "plugins.allow=[large]", "engine.processes=1",
        f"stages.student={{student: {{model: 'large:Net', way: {way}}}, losses: [{{name: ce}}]}}",
    )  # fmt: skip
    assert box.run()["student"] == "failed"
    reason = box.folder("student").state()["reason"]
    assert reason.startswith("out of memory: peak ")
    assert re.search(CAUSES[way], reason), reason
