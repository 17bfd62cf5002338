"""Losses that relate samples give two ranks the value and the gradients of one process, and `local` does not."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import run_on_ranks

WORKER = """
import torch
from torch import nn
from kdscale import plugins, ranks
from kdscale.api import Batch, Outputs, Shapes

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
CASES = [CASES]
B, mine = 4, slice(4 * ranks.rank(), 4 * ranks.rank() + 4)
generator = torch.Generator().manual_seed(0)
images, answers = torch.randn(2, 2 * B, 6, generator=generator, dtype=torch.float64)
empty = Batch(torch.zeros(2 * B, 1, 1, 1, dtype=torch.uint8), torch.zeros(2 * B).long(), torch.arange(2 * B), view=0)
close = dict(rtol=1e-9, atol=1e-12)


def step(name, options, at):
    # the value, and the gradients of a student and of the loss's own parts
    torch.manual_seed(1)
    student = nn.Linear(6, 5).double()
    shapes = Shapes(5, [(5,)], [(6,)])
    plugin = plugins.load("losses", name)
    loss = plugin(plugin.Config(**options), shapes).double()
    logits, taught = student(images[at]), answers[at]
    value = loss(Outputs(logits, [logits]), Outputs(taught[:, :5], [taught]), empty)
    value.backward()
    parts = [*student.parameters(), *loss.parameters()]
    return value.detach(), [p.grad for p in parts if p.requires_grad]


for name, options in CASES:
    value, grads = step(name, {**options, "pairs": "local"}, slice(None))
    got, got_grads = step(name, options, mine)
    torch.testing.assert_close(ranks.mean_(got.clone()), value, **close)
    assert grads and all(float(grad.abs().max()) > 1e-6 for grad in grads[:1])
    for got_grad, grad in zip(got_grads, grads, strict=True):
        torch.testing.assert_close(ranks.mean_(got_grad.clone()), grad, **close)
    local = [ranks.mean_(grad.clone()) for grad in step(name, {**options, "pairs": "local"}, mine)[1]]
    assert not torch.allclose(local[0], grads[0], rtol=1e-3, atol=0), (name, "cannot fail")
ranks.leave()
print("equal")
"""

CASES = [
    ("cc", {}),
    ("cc", {"kernel": "bilinear", "teacher_embedding": "trained"}),
    ("cc", {"kernel": "adjacent"}),
    ("dist", {}),
    ("dist", {"inter": 0.0, "temperature": 1.0, "scale_t2": False}),
    ("pkt", {}),
    ("pkt", {"reduction": "offdiagonal"}),
    ("rkd", {"distance": 1.0, "angle": 0.0}),
    ("rkd", {"distance": 0.0, "angle": 1.0, "chunk": 3}),
    ("sp", {}),
]


def test_two_ranks_equal_one_process(root: Path) -> None:
    run_on_ranks(WORKER.replace("[CASES]", repr(CASES)), root)
