from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdscale import checkpoint
from kdscale.config.schema import StageSpec
from kdscale.pipeline.artifacts import StageFolder
from kdscale.train.replay_start import start_before

ZERO = {"zero_stage": 2, "world": 4}


def spec(**changes: Any) -> StageSpec:
    student = {"model": "resnet_cifar", "depth": 8}
    return StageSpec.model_validate({"name": "s", "data": {"name": "synthetic"}, "student": student, **changes})


def folder_with(
    path: Path, *steps: int, sharding: dict[str, int] | None = None, skip: tuple[int, ...] = ()
) -> StageFolder:
    def write(side: Path) -> None:
        (side / "engine.json").write_text(json.dumps({"step": 0, "sharding": sharding} if sharding else {"step": 0}))

    folder = StageFolder(path)
    for step in steps:
        loop = {"step": step, "digest": "d", "world": 2, "state": {"skip": list(skip)}}
        checkpoint.save(folder.checkpoints, loop, write, keep=99, is_mine=lambda: True)
    checkpoint.settle()
    attempts = [{"attempt": 1, "world": 4}, {"attempt": 2, "world": 2, "resumed_from": 8}]
    (path / "state.json").write_text(json.dumps({"attempts": attempts, "digest": "d"}))
    return folder


@pytest.mark.parametrize(("step", "begins", "world"), [(3, 0, 4), (4, 4, 4), (7, 4, 4), (8, 8, 2), (100, 12, 2)])
def test_it_begins_at_the_newest_checkpoint_before_with_the_ranks_of_then(
    tmp_path: Path, step: int, begins: int, world: int
) -> None:
    start = start_before(folder_with(tmp_path, 4, 8, 12, skip=(5,)), spec(), step)
    assert (start.step, start.world, start.weights_only, start.notes) == (begins, world, False, [])
    assert (start.checkpoint is None) == (begins == 0)
    assert start.passed_over == {5}


def test_a_damaged_one_is_left_where_it_is_and_the_one_before_is_taken(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 4, 8)
    (folder.checkpoints / "step_00000008" / "engine.json").write_text("damaged")
    assert start_before(folder, spec(), 9).step == 4
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step_00000004", "step_00000008"]


def test_a_sharded_one_serves_the_step_that_it_stands_before(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, 4, sharding=ZERO)
    there = start_before(folder, spec(), 4)
    assert (there.step, there.weights_only) == (4, True)
    later = start_before(folder, spec(), 6)
    assert (later.step, later.checkpoint) == (0, None)
    assert later.notes == [
        "checkpoint step 4 is sharded (ZeRO 2 over 4 processes): one process can begin only step 4 from it (--step 4)"
    ]
    passes = {"one": [{"name": "ce", "id": "a"}], "two": [{"name": "ce", "id": "b"}]}
    assert start_before(folder, spec(passes=passes), 4).step == 0, "its second pass follows an update"


def test_a_stage_that_never_ran_has_its_initial_weights(tmp_path: Path) -> None:
    start = start_before(StageFolder(tmp_path), spec(), 2)
    assert (start.step, start.world, str(start)) == (0, 1, "initial weights (step 0)")
