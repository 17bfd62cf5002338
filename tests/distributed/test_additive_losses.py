"""Losses that are means over samples find on 2 and 4 ranks what one process does: by themselves, with `bn: sync`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale import plugins
from tests.distributed.one_process import Case
from tests.distributed.ranks import run_on_ranks
from tests.matrix import MATRIX

PROGRAM = "from tests.distributed.one_process import *\n{call}\nprint('equal')"
CASES = [
    Case("ab"),
    Case("adaptation"),
    Case("at"),
    Case("at_grad"),
    Case("at_grad", {"mode": "squared"}),
    Case("ce"),
    Case("crd", {"dimensions": 4, "negatives": 7}),
    Case("dkd"),
    Case("fitnet"),
    Case("fitnet", {"regressor": "conv1x1", "reduction": "paper"}),
    Case("fsp", {"adapter": True}),
    Case("ft", {"translator_bn": True}),
    Case("ickd"),
    Case("ickd", {"reduction": "imagenet"}),
    Case("kd"),
    Case("kd", {}, [("zscore", {}), ("prime_aware", {})]),
    Case("kd", {}, [("misclassified", {}), ("lift_target", {})]),
    Case("kd", {}, [("misclassified", {"normalise": "batch"}), ("lift_target", {"rule": "swap"})]),
    Case("logits"),
    Case("nst"),
    Case("pad"),
    Case("pad", {"variance": "sample"}),
    Case("reviewkd"),
    Case("vid"),
]


def test_every_loss_of_samples_is_compared() -> None:
    per_sample = {name for name in plugins.available("losses") if not plugins.load("losses", name).relational}
    per_pixel = {name for name in per_sample if not plugins.load("losses", name).per_sample}  # test_pixels.py
    assert {case.name for case in CASES} == per_sample - per_pixel
    assert per_pixel == {"pixel_ce"}
    assert {name for case in CASES for name, _ in case.modifiers} == set(plugins.available("modifiers"))


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=MATRIX)])
def test_ranks_find_what_one_process_does(world: int, root: Path) -> None:
    run_on_ranks(PROGRAM.format(call=f"compare({CASES})"), root, world=world)
