"""Calls and bytes of collectives are those that two ranks made."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import run_on_ranks

PROGRAM = """
import torch, torch.distributed as dist
from benchmarks.collectives import Collectives
dist.init_process_group("gloo")
heard = Collectives()
assert heard.stop() == {}
heard.start()
for _ in range(3):
    dist.all_reduce(torch.zeros(100))
dist.all_reduce(torch.zeros(5, dtype=torch.int64))
dist.broadcast(torch.zeros(7, dtype=torch.float64), 0)
found = heard.stop()
assert found == {"gloo:all_reduce": {"calls": 4, "bytes": 1240}, "gloo:broadcast": {"calls": 1, "bytes": 56}}, found
assert heard.stop() == {}
dist.destroy_process_group()
print("equal")
"""


def test_what_two_ranks_said(root: Path) -> None:
    run_on_ranks(PROGRAM, root, PYTHONPATH=str(root))
