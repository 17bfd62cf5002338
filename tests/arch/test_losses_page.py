"""docs/losses.md says of every loss how it behaves over several processes, with the figures that come out today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.shards import ADDITIVE, CASES, Compared, compared
from kdscale import plugins

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text()


def listed(kind: str) -> set[str]:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {kind} |"))
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))


def test_every_loss_is_of_the_kind_that_it_declares() -> None:
    losses = {name: plugins.load("losses", name) for name in plugins.available("losses")}
    assert listed("of the whole batch") == {name for name, loss in losses.items() if loss.relational}
    assert listed("with a memory") == {name for name, loss in losses.items() if loss.stateful}
    rest = {name for name, loss in losses.items() if not loss.relational and not loss.stateful}
    assert listed("means over samples") == rest
    assert {name for _, name, _ in CASES} == listed("of the whole batch")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_figures_are_todays(case: tuple[str, str, dict[str, object]]) -> None:
    row = compared(*case, 64, 4)
    found = next(line for line in PAGE.splitlines() if line.startswith(f"| {row.what} |")).split("|")[2:-1]
    written = Compared(row.what, *map(float, found))
    for now, then in zip(row[1:], written[1:], strict=True):
        assert now == pytest.approx(then, rel=1e-3, abs=6e-3), "python -m benchmarks.shards --write"
    same = (row.cosine, row.length) == pytest.approx((1, 1), rel=1e-9)
    assert same == (row.what in ADDITIVE)
