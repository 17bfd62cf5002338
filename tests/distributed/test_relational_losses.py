"""Losses that relate samples find on 2 and 4 ranks what one process does; with `pairs: local`, each rank its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale import plugins
from tests.distributed.one_process import Case
from tests.distributed.ranks import run_on_ranks
from tests.matrix import MATRIX

WORLDS = [2, pytest.param(4, marks=MATRIX)]
PROGRAM = "from tests.distributed.one_process import *\n{call}\nprint('equal')"
CASES = [
    Case("cc"),
    Case("cc", {"kernel": "bilinear", "teacher_embedding": "trained"}),
    Case("cc", {"kernel": "adjacent"}),
    Case("dist"),
    Case("dist", {"inter": 0.0, "temperature": 1.0, "scale_t2": False}),
    Case("mlkd"),
    Case("mlkd", {"samples": 0.0, "batch": 0.0}),
    Case("mlkd", {"samples": 0.0, "classes": 0.0}),
    Case("mlkd", {}, [("zscore", {})]),
    Case("pkt"),
    Case("pkt", {"reduction": "offdiagonal"}),
    Case("projector"),
    Case("projector", {"form": "cross_correlation"}),
    Case("rkd", {"distance": 1.0, "angle": 0.0}),
    Case("rkd", {"distance": 0.0, "angle": 1.0, "chunk": 3}),
    Case("sp"),
]


def relational() -> set[str]:
    return {name for name in plugins.available("losses") if plugins.load("losses", name).relational}


def test_every_relational_loss_is_compared_and_may_stay_on_its_rank() -> None:
    assert {case.name for case in CASES} == relational()
    assert all("pairs" in plugins.load("losses", name).Config.model_fields for name in relational())


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_find_what_one_process_does(world: int, root: Path) -> None:
    run_on_ranks(PROGRAM.format(call=f"compare({CASES})"), root, world=world)


@pytest.mark.parametrize("world", WORLDS)
def test_local_pairs_are_those_of_each_rank(world: int, root: Path) -> None:
    run_on_ranks(PROGRAM.format(call=f"compare_local({CASES}, {world})"), root, world=world)
