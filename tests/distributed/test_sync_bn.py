"""n ranks of B samples with synchronised BatchNorm compute what one process of all samples computes."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import run_on_ranks

WORKER = """
import torch
from torch import nn
from kdscale import ranks
from kdscale.nn.sync_bn import average_buffers, to_sync_bn

torch.set_num_threads(1)
ranks.join("gloo", timeout_s=60)
CUTS = {0: slice(0, 3), 1: slice(3, 8)}  # ranks of different size, one large mean


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Conv2d(4, 4, 3),
                         nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).double()


def step(model, x, target):
    x = x.clone().requires_grad_()
    loss = ((model(x) - target) ** 2).sum()
    model.zero_grad()
    loss.backward()
    return loss.detach(), x.grad, [p.grad for p in model.parameters()]


torch.manual_seed(1)
x, target = torch.randn(8, 2, 6, 6).double() + 100, torch.randn(8, 3).double()
whole, synced = network(), to_sync_bn(network())
mine = CUTS[ranks.rank()]
for _ in range(3):
    loss, x_grad, grads = step(whole, x, target)
    my_loss, my_x_grad, my_grads = step(synced, x[mine], target[mine])
    close = dict(rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ranks.sum_(my_loss), loss, **close)
    torch.testing.assert_close(my_x_grad, x_grad[mine], **close)
    for my_grad, grad in zip(my_grads, grads):
        torch.testing.assert_close(ranks.sum_(my_grad.clone()), grad, **close)
    for my_buffer, buffer in zip(synced.buffers(), whole.buffers()):
        torch.testing.assert_close(my_buffer, buffer, **close)

local = network()
local(x[mine])
own = {k: v.clone() for k, v in local.named_buffers()}
averaged = average_buffers(local)
for name, value in averaged.items():
    everyone = torch.stack(ranks.gather_objects(own[name])).mean(0)
    torch.testing.assert_close(value, everyone, rtol=1e-12, atol=1e-12)
    assert not torch.equal(value, own[name])
assert all(torch.equal(v, own[k]) for k, v in local.named_buffers()), "written back"
ranks.leave()
print("equal")
"""


def test_two_ranks_equal_one_big_batch(root: Path) -> None:
    run_on_ranks(WORKER, root)
