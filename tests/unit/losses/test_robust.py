"""Every loss, with each choice of its options, on batches that divide by zero, overflow or lose their digits."""

from __future__ import annotations

import pytest
import torch

from kdscale import plugins
from kdscale.errors import ShapeError
from tests.hard_batches import HARD, MAPS, UNDEFINED, Hard, Variant, run, variants

DEFINED_ALONE = {
    "ab-connect=where_needed", "adaptation-distance=none", "fitnet-regressor=conv1x1", "fitnet-regressor=none",
    "pad-variance=none",
}  # fmt: skip
"""Without the BatchNorm that their losses have by default."""

OWN_NETWORKS = {"ab", "adaptation", "fitnet", "fsp", "ft", "ickd", "reviewkd", "vid"}
"""Losses with networks of their own over maps, which run in bf16 where the stage's do."""


def refusal(loss: Variant, batch: str) -> str | None:
    """What the error says where a loss has no value."""
    undefined = {} if str(loss) in DEFINED_ALONE else UNDEFINED.get(batch, {})
    return undefined.get(str(loss), undefined.get(loss.name))


@pytest.mark.parametrize("batch", HARD)
@pytest.mark.parametrize("loss", variants("losses"), ids=str)
def test_a_hard_batch_has_finite_value_and_gradients_or_is_refused(loss: Variant, batch: str) -> None:
    """In float32; and in half precision, under an autocast too, the very same, where no network rounds in between."""
    if message := refusal(loss, batch):
        with pytest.raises(ShapeError, match=f"^{loss.name}: .*{message}"):
            run(loss, HARD[batch], torch.float32, torch.float32)
        return
    run(loss, HARD[batch], torch.float32, torch.float32).assert_finite()
    halves = (torch.float16,) if loss.options else (torch.float16, torch.bfloat16)
    for half in halves:
        want, got = (run(loss, HARD[batch], dtype, half) for dtype in (torch.float32, half))
        want.assert_finite()
        rounds = loss.name in OWN_NETWORKS and half == torch.bfloat16
        if rounds or plugins.load("losses", loss.name).needs_input_grad:
            got.assert_finite()
        else:
            got.assert_same(want)


@pytest.mark.parametrize("loss", [one for one in variants("losses") if one.name in OWN_NETWORKS], ids=str)
def test_own_networks_run_as_the_students_does_and_are_compared_in_float32(loss: Variant) -> None:
    want, got = (run(loss, Hard(features=MAPS), dtype, torch.bfloat16) for dtype in (torch.float32, torch.bfloat16))
    got.assert_finite()
    torch.testing.assert_close(got.value, want.value, rtol=0.03, atol=0.0)
