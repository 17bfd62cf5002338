from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.api import IGNORED, Batch, Outputs, Shapes
from kdscale.losses.ce import cross_entropy
from kdscale.losses.pixel_ce import PixelCrossEntropy

CLASSES, SIDE = 5, 6


def drawn(seed: int, share: float, rows: int = 4) -> tuple[Outputs, Batch]:
    """Logits of maps, and labels of which a share is ignored."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, CLASSES, SIDE, SIDE, generator=rng, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, CLASSES, (rows, SIDE, SIDE), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < share] = IGNORED
    images = torch.zeros(rows, 1, SIDE, SIDE, dtype=torch.uint8)
    return Outputs(logits), Batch(images, labels, torch.arange(rows), view=0)


def loss(**options: float) -> PixelCrossEntropy:
    return PixelCrossEntropy(PixelCrossEntropy.Config(**options), Shapes(CLASSES))


@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.3, 0.9]), smoothing=st.sampled_from([0.0, 0.1]))
def test_is_the_mean_of_ce_over_labelled_pixels(seed: int, share: float, smoothing: float) -> None:
    student, batch = drawn(seed, share)
    keep = batch.labels != IGNORED
    rows = student.logits.permute(0, 2, 3, 1)[keep]
    want = cross_entropy(rows, batch.labels[keep], smoothing).sum() / max(1, int(keep.sum()))
    torch.testing.assert_close(loss(label_smoothing=smoothing)(student, None, batch), want)


def test_ignored_pixels_have_no_gradient() -> None:
    student, batch = drawn(0, 0.5)
    loss()(student, None, batch).backward()
    assert student.logits.grad is not None
    ignored = (batch.labels == IGNORED)[:, None].expand_as(student.logits)
    assert not student.logits.grad[ignored].any()
    assert student.logits.grad[~ignored].all()


def test_without_a_labelled_pixel_it_is_zero_with_a_gradient_of_zero() -> None:
    student, batch = drawn(1, 1.0)
    value = loss()(student, None, batch)
    value.backward()
    assert value.item() == 0
    assert student.logits.grad is not None
    assert not student.logits.grad.any()
