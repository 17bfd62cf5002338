"""Losses of the whole batch give two ranks the value, the gradients and the memory of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

WORKER = """
import torch
from torch import nn
from kdscale import plugins, ranks
from kdscale.api import Batch, Outputs, Shapes

torch.set_num_threads(1)
CASES = [
    ("crd", {"dimensions": 4, "negatives": 5}),
    ("mlkd", {}),
    ("projector", {}),
    ("projector", {"form": "cross_correlation"}),
]
generator = torch.Generator().manual_seed(0)
images, answers = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64)
batch = Batch(torch.zeros(8, 1, 1, 1, dtype=torch.uint8), torch.arange(8), torch.arange(8), view=0)


def step(name, options, at):
    # the value, the gradients of a student and of the loss's own parts, and the loss's memory
    torch.manual_seed(1)
    student = nn.Linear(6, 5).double()
    plugin = plugins.load("losses", name)
    loss = plugin(plugin.Config(**options), Shapes(5, [(5,)], [(6,)], train_rows=20)).double()
    logits, taught = student(images[at]), answers[at]
    mine = Batch(batch.images[at], batch.labels[at], batch.rows[at], view=0)
    value = loss(Outputs(logits, [logits]), Outputs(taught[:, :5], [taught]), mine).mean()
    value.backward()
    banks = [bank for name, bank in loss.named_buffers() if "memory" in name]
    return [value.detach(), *(p.grad for p in [*student.parameters(), *loss.parameters()]), *banks]


whole = [step(*case, slice(None)) for case in CASES]  # nobody has joined yet: a world of one
halves = [[(a + b) / 2 for a, b in zip(step(*c, slice(4)), step(*c, slice(4, 8)))] for c in CASES]
ranks.join("gloo", timeout_s=60)
mine = slice(4 * ranks.rank(), 4 * ranks.rank() + 4)
for case, expected, apart in zip(CASES, whole, halves):
    got = [ranks.mean_(tensor.clone()) for tensor in step(*case, mine)]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(apart[1], expected[1], rtol=1e-3, atol=0), (case, "cannot fail")
ranks.leave()
print("equal")
"""


def test_two_ranks_equal_one_process(root: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    piped = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", WORKER]
    running = [subprocess.Popen(command, cwd=root, env=shared | {"RANK": str(rank)}, **piped) for rank in range(2)]
    try:
        for process in running:
            out, error = process.communicate(timeout=120)
            assert out.strip() == "equal", error[-3000:]
    finally:
        for process in running:
            process.kill()
