"""Every modifier, with each choice of its options, on batches that divide by zero, overflow or lose their digits."""

from __future__ import annotations

import pytest
import torch

from kdscale.errors import ShapeError
from tests.hard_batches import HARD, UNDEFINED, Variant, run, variants

BEHIND = [Variant("kd"), Variant("logits")]
"""Defined on every batch, with a value a sample."""


@pytest.mark.parametrize("batch", HARD)
@pytest.mark.parametrize("loss", BEHIND, ids=str)
@pytest.mark.parametrize("modifier", variants("modifiers"), ids=str)
def test_a_hard_batch_has_finite_value_and_gradients_or_is_refused(
    modifier: Variant, loss: Variant, batch: str
) -> None:
    """In float32; and in half precision, under an autocast too, the very same."""
    if message := UNDEFINED.get(batch, {}).get(modifier.name):
        with pytest.raises(ShapeError, match=f"^{modifier.name}: .*{message}"):
            run(loss, HARD[batch], torch.float32, torch.float32, modifier=modifier)
        return
    run(loss, HARD[batch], torch.float32, torch.float32, modifier=modifier).assert_finite()
    for half in (torch.float16, torch.bfloat16):
        want, got = (run(loss, HARD[batch], dtype, half, modifier=modifier) for dtype in (torch.float32, half))
        want.assert_finite()
        got.assert_same(want)
