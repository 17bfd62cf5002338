"""Labels of pixels over 2 ranks and on one process: equal loss, equal gradient, equal mIoU."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.ranks import run_on_ranks

PROGRAM = """
import torch
from dataclasses import replace
from kdscale import ranks
from kdscale.api import IGNORED, Batch, Outputs, Shapes
from kdscale.losses.pixel_ce import PixelCrossEntropy, pixel_cross_entropy
from kdscale.train.pixels import PixelFigures, PixelSums

ranks.join("gloo")
rng = torch.Generator().manual_seed(0)
logits = torch.randn(8, 5, 6, 6, generator=rng, dtype=torch.float64).requires_grad_()
labels = torch.randint(0, 5, (8, 6, 6), generator=rng)
labels[:4][torch.rand(4, 6, 6, generator=rng) < 0.9] = IGNORED  # rank 0 has far fewer labelled pixels
mine = slice(4 * ranks.rank(), 4 * ranks.rank() + 4)
batch = Batch(torch.zeros(4, 1, 6, 6, dtype=torch.uint8), labels[mine], torch.arange(4), view=0)
loss = PixelCrossEntropy(PixelCrossEntropy.Config(), Shapes(5))
value = loss(Outputs(logits[mine]), None, batch)
(own,) = torch.autograd.grad(value, logits)
whole = pixel_cross_entropy(logits, labels, 0.0).sum() / (labels != IGNORED).sum()
(want,) = torch.autograd.grad(whole, logits)
torch.testing.assert_close(ranks.mean_(value.detach().clone()), whole.detach(), rtol=1e-12, atol=0)
torch.testing.assert_close(ranks.mean_(own.clone()), want, rtol=1e-12, atol=1e-15)

share = PixelSums(5, torch.device("cpu"))
share.add(Outputs(logits[mine].detach()), labels[mine], {})
keep = labels != IGNORED
counts = torch.bincount(labels[keep] * 5 + logits.argmax(1)[keep], minlength=25).view(5, 5)
assert share.figures() == PixelFigures.of(counts, 8), share.figures()
ranks.barrier()
ranks.leave()
print("equal")
"""


def test_two_ranks_have_the_loss_and_the_miou_of_one(root: Path) -> None:
    run_on_ranks(PROGRAM, root, world=2)
