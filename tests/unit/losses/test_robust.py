"""Every loss, with each choice of its options, on batches that divide by zero, overflow or lose their digits."""

from __future__ import annotations

import pytest
import torch

from kdscale import plugins
from kdscale.errors import ShapeError
from tests.hard_batches import HARD, UNDEFINED, Variant, run, variants

DEFINED_ALONE = {
    "ab-connect=where_needed", "adaptation-distance=none", "fitnet-regressor=conv1x1", "fitnet-regressor=none",
    "pad-variance=none",
}  # fmt: skip
"""Without the BatchNorm that their losses have by default."""


def refusal(loss: Variant, batch: str) -> str | None:
    """What the error says where a loss has no value."""
    undefined = {} if str(loss) in DEFINED_ALONE else UNDEFINED.get(batch, {})
    return undefined.get(str(loss), undefined.get(loss.name))


@pytest.mark.parametrize("batch", HARD)
@pytest.mark.parametrize("loss", variants("losses"), ids=str)
def test_a_hard_batch_has_finite_value_and_gradients_or_is_refused(loss: Variant, batch: str) -> None:
    """In float32; and in half precision, under an autocast too, the very same."""
    if message := refusal(loss, batch):
        with pytest.raises(ShapeError, match=f"^{loss.name}: .*{message}"):
            run(loss, HARD[batch], torch.float32, torch.float32)
        return
    run(loss, HARD[batch], torch.float32, torch.float32).assert_finite()
    halves = (torch.float16,) if loss.options else (torch.float16, torch.bfloat16)
    for half in halves:
        want, got = (run(loss, HARD[batch], dtype, half) for dtype in (torch.float32, half))
        want.assert_finite()
        if plugins.load("losses", loss.name).needs_input_grad:  # runs through what the network itself rounds
            got.assert_finite()
        else:
            got.assert_same(want)
