"""A snapshot is the network that was evaluated, not the one that goes on training."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from kdscale.jobs.inline import run_one
from kdscale.train.stop import Stop
from tests.e2e.conftest import Make


def test_with_ema_a_snapshot_holds_the_averaged_weights(sandbox: Make) -> None:
    box = sandbox("ema", "train.ema=0.9", "stages.student=null")
    for stage in box.plan.todo:
        assert run_one(box.root, stage, Stop()) == "done"
    folder = box.folder("teacher")
    snapshot = load_file(folder.path / "student.safetensors")
    newest = sorted(folder.checkpoints.glob("step_*"))[-1]
    saved = load_file(newest / "training.safetensors")
    name = next(name for name in snapshot if name.endswith("head.weight"))
    live = next(value for key, value in saved.items() if key.startswith("parameter.") and key.endswith(name))
    averaged = [value for key, value in saved.items() if key.startswith("ema.") and value.shape == live.shape]
    assert any(torch.equal(snapshot[name], value) for value in averaged)
    assert not torch.equal(snapshot[name], live)


def test_with_two_ranks_a_snapshot_holds_the_mean_of_their_statistics(sandbox: Make) -> None:
    box = sandbox("two", "engine.processes=2", "stages.student=null")
    assert box.run()["teacher"] == "done"
    folder = box.folder("teacher")
    snapshot = load_file(folder.path / "student.safetensors")
    newest = sorted(folder.checkpoints.glob("step_*"))[-1]
    ranks = [load_file(path) for path in sorted(newest.glob("buffers*.safetensors"))]
    assert len(ranks) == 2
    name = next(name for name in snapshot if name.endswith("running_mean"))
    own = [next(value for key, value in rank.items() if key.endswith(name)) for rank in ranks]
    assert not torch.equal(own[0], own[1])
    torch.testing.assert_close(snapshot[name], (own[0] + own[1]) / 2)
    assert not torch.equal(snapshot[name], own[0])
