"""A step once more, in one process: the very numbers of the stage, and what was not finite in it first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdscale.checkpoint import file_hash
from kdscale.errors import ConfigError, StageError
from kdscale.jobs.replaying import Wish, replay_stage
from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.failures import failures_of
from tests.e2e.conftest import Make, Sandbox
from tests.matrix import MATRIX

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = (
    "data.options.train_rows=144", "train.epochs=1", "train.batch_size=16", "train.log_every_steps=1",
    "train.checkpoint_every_steps=3", "train.keep_checkpoints=9", "stages.teacher.student.widths=[4,4,8]",
)  # fmt: skip
NET = '''
import torch
from torch import nn

class Scale(nn.Module):
    """Takes a root of what is negative where a picture is too bright."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        room = self.most - x.mean((1, 2, 3))
        return x * room.sqrt()[:, None, None, None]

class Net(nn.Module):
    def __init__(self, num_classes, most):
        super().__init__()
        self.scale = Scale(most)
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(self.scale(x))).relu().mean((2, 3)))
'''
BAD = 6
"""Step that shows the first picture which is too bright for NET at 0.3."""


def replayed(box: Sandbox, out: Path, stage: str = "student", **wish: Any) -> tuple[Path, dict[str, Any], list[str]]:
    said: list[str] = []
    path = replay_stage(box.root, Wish(box.folder(stage).digest, out=out, **wish), said.append)
    return path, json.loads((path / "replay.json").read_text()), said


def files_under(path: Path) -> dict[str, tuple[int, str]]:
    return {str(f.relative_to(path)): (f.stat().st_mtime_ns, file_hash(f)) for f in path.rglob("*") if f.is_file()}


def logged(folder: StageFolder, step: int) -> dict[str, float]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return next(line["metrics"] for line in lines if line["step"] == step + 1 and "train/loss" in line["metrics"])


CASES = {
    "a cache, parts of a batch, EMA": [
        "stages.student.teachers.teacher.cache={views: 2, block_rows: 64}", "stages.student.train.accumulation=2",
        "stages.student.train.ema=0.9", "engine.processes=1",
    ],
    "two ranks, each with its own statistics": ["engine.processes=2", "train.grad_clip=1.0"],
    "two ranks, statistics and pairs of both": [
        "engine.processes=2", "train.bn=sync",
        "stages.student.losses=[{name: ce}, {name: rkd, taps: {student: [pooled], teacher: [pooled]}}]",
    ],
    "branches": ["engine.processes=1", "stages.student.strategy=one", "stages.student.losses=[{name: ce}]",
                 "stages.student.teachers={}"],
    "blocks of the teacher": [
        "engine.processes=2", "stages.student.strategy=iakd", "stages.student.options={schedule: linear}",
        "stages.student.student={model: resnet_cifar, depth: 8, widths: [4,4,8]}",
    ],
    "two passes": [
        "engine.processes=2", "stages.student.losses=null",
        "stages.student.passes={general: [{name: ce}], wise: [{name: kd, modifiers: [{name: misclassified}]}]}",
    ],
}  # fmt: skip
IN_SHORT = ("a cache, parts of a batch, EMA", "two ranks, statistics and pairs of both")


@pytest.mark.parametrize("case", [name if name in IN_SHORT else pytest.param(name, marks=MATRIX) for name in CASES])
def test_it_is_the_step_that_was_logged_and_leads_to_the_next_checkpoint(
    sandbox: Make, tmp_path: Path, case: str
) -> None:
    box = sandbox("runs", *QUICK, *CASES[case])
    assert set(box.run().values()) == {"done"}, box.said
    folder = box.folder("student")
    later = tmp_path / "later"
    shutil.move(folder.checkpoints / "step_00000006", later)
    for path in folder.checkpoints.glob("step_*"):
        if path.name > "step_00000006":
            shutil.rmtree(path)
    before = files_under(box.root.path)
    path, document, _ = replayed(box, tmp_path / "out", step=6, tensors=True)
    assert document["from"]["step"] == 3
    for name, value in document["terms"].items():
        assert value == logged(folder, 6)[f"train/term/{name}"], name
    assert document["loss"] == logged(folder, 6)["train/loss"]
    weights, saved = load_file(path / "weights.safetensors"), load_file(later / "training.safetensors")
    for name, value in saved.items():
        if name.startswith("parameter."):
            assert torch.equal(weights[name.removeprefix("parameter.")], value), name
    assert files_under(box.root.path) == before


def test_without_checkpoints_and_without_its_cache_it_begins_with_the_initial_weights(
    sandbox: Make, tmp_path: Path
) -> None:
    box = sandbox("runs", *QUICK, *CASES["a cache, parts of a batch, EMA"])
    assert set(box.run().values()) == {"done"}, box.said
    folder = box.folder("student")
    shutil.rmtree(folder.checkpoints)
    shutil.rmtree(box.root.caches)
    _, document, said = replayed(box, tmp_path / "out", step=4)
    assert said[0] == "initial weights (step 0) -> replaying 4 steps of 1 rank x 16, 2 parts each, then step 4"
    assert document["terms"]["kd"] == logged(folder, 4)["train/term/kd"]
    assert any("lacks what is asked" in line for line in said)
    assert not box.root.caches.exists()


# --------------------------------------------------------------------------- what was not finite


@pytest.fixture
def failed(sandbox: Make, tmp_path: Path) -> Any:
    (tmp_path / "bright.py").write_text(NET)

    def make(*overrides: str) -> Sandbox:
        box = sandbox(
            "runs", "stages.teacher=null",
            "stages.student={student: {model: 'bright:Net', most: 0.3}, losses: [{name: ce}]}",
            f"plugins.path=[{tmp_path}]", "plugins.allow=[bright]", "train.checkpoint_every_steps=4", *overrides,
        )  # fmt: skip
        assert box.run()["student"] == "failed"
        return box

    return make


def test_it_names_module_operation_and_sample_and_draws_it(failed: Any, tmp_path: Path) -> None:
    box = failed("engine.processes=2", "train.precision=bf16")
    folder = box.folder("student")
    records = failures_of(folder.logs)
    assert [(one["rank"], one["step"], len(one["rows"])) for one in records] == [(0, BAD, 16), (1, BAD, 16)]
    bad = [one["rank"] for one in records if one["terms"]["ce"] != one["terms"]["ce"]]
    (sound,) = {0, 1} - set(bad)
    assert records[sound]["ranges"]["logits"][0] < records[sound]["ranges"]["logits"][1]

    before = files_under(box.root.path)
    path, document, said = replayed(box, tmp_path / "out", precision="fp32", anomaly=True)
    assert files_under(box.root.path) == before
    assert said[0] == f"checkpoint step 4 -> replaying 2 steps of 2 ranks x 16, which take turns here, then step {BAD}"
    assert "the same values as the stage recorded when it failed" in said
    text = "\n".join(said)
    assert "first non-finite: student.model.scale (Scale)" in text
    assert "by aten.sqrt.default at" in text
    assert "`return x * room.sqrt()[:, None, None, None]`" in text
    assert "no matter of bf16" in text
    assert "--anomaly: Function '" in text

    first = document["first"]
    assert first["rank"] == bad[0]
    sample = document["ranks"][bad[0]]["first"]["sample"]
    assert records[bad[0]]["rows"][sample] == first["row"]
    batch = load_file(path / "batch.safetensors")
    assert batch["rows"].tolist() == [row for one in records for row in one["rows"]]
    (picture,) = path.glob("*.png")
    assert picture.name == f"img_{first['row']}_v0.png"
    drawn = np.asarray(Image.open(picture))
    assert np.array_equal(drawn, batch["images"][16 * bad[0] + sample].permute(1, 2, 0).squeeze().numpy())


def test_a_debugger_stops_in_the_line_that_makes_it(failed: Any, tmp_path: Path) -> None:
    box = failed("engine.processes=1")
    command = [
        sys.executable, str(REPOSITORY / "launch" / "replay.py"), box.folder("student").digest[:12], "--pdb",
        "--runs", str(box.root.path), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, input="p room.min() < 0\nq\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"bright\.py\(\d+\)forward\(\)", done.stdout)
    assert "tensor(True)" in done.stdout
    assert (tmp_path / "out" / f"student-{box.folder('student').digest[:4]}-step{BAD}" / "replay.json").is_file()


def test_what_cannot_be_replayed_is_said_in_a_line(failed: Any, tmp_path: Path) -> None:
    box = failed("engine.processes=1")
    for name, step, words in (
        ("data", None, "only what trains has steps"), ("student", 60, "has steps 0 to 59"),
        ("student", -1, "has steps 0 to 59"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            replayed(box, tmp_path / "out", name, step=step)
    (tmp_path / "taken" / f"student-{box.folder('student').digest[:4]}-step{BAD}").mkdir(parents=True)
    for out, words in ((tmp_path / "bright.py", "is a file; name a folder"), (tmp_path / "taken", "holds no replay")):
        with pytest.raises(ConfigError, match=words):
            replayed(box, out)
    box.folder("student").write_state(state="done", reason="")
    for path in box.folder("student").logs.glob("nonfinite-*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"no step at which it failed: give --step N, from 0 to 59"):
        replayed(box, tmp_path / "out")
    box.folder("data").write_state(state="failed")
    with pytest.raises(StageError, match="its data is not converted"):
        replayed(box, tmp_path / "out", step=1)
    assert not (tmp_path / "out").exists()
