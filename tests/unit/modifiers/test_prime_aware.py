from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.kd import SoftTargets
from kdscale.modifiers.prime_aware import PrimeAwareWeights

BATCH = Batch(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)


def modifier(*shape: int) -> PrimeAwareWeights:
    torch.manual_seed(0)
    return PrimeAwareWeights(PrimeAwareWeights.Config(), Shapes(5, [(2,), shape]))


def answers(seed: int, *shape: int) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    return Outputs(torch.randn(6, 5, generator=rng), [torch.zeros(6, 2), torch.randn(6, *shape, generator=rng)])


def weighed(weights: PrimeAwareWeights, student: Outputs, values: Tensor) -> Tensor:
    weights.before(student, None, BATCH)
    return weights.after(values, BATCH)


@given(seed=st.integers(0, 999))
def test_equals_the_formula_with_the_last_features_variance(seed: int) -> None:
    weights, student, values = modifier(4), answers(seed, 4), torch.arange(6.0)
    lv = weights.head(student.features[-1])[:, 0]
    torch.testing.assert_close(weighed(weights, student, values), values / (1e-6 + lv.exp()) + lv)


def test_maps_are_averaged_over_their_positions() -> None:
    student = answers(0, 4, 3, 3)
    pooled = Outputs(student.logits, [f.mean((2, 3)) if f.dim() == 4 else f for f in student.features])
    values = torch.arange(6.0)
    got = weighed(modifier(4, 3, 3), student, values)
    torch.testing.assert_close(got, weighed(modifier(4), pooled, values))


def test_goes_with_soft_targets_and_trains_its_head() -> None:
    weights, student, teacher = modifier(4), answers(0, 4), answers(1, 4)
    kd = SoftTargets(SoftTargets.Config(), Shapes(5))
    values = weights.after(kd(*weights.before(student, teacher, BATCH), BATCH), BATCH)
    assert values.shape == (6,)
    values.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in weights.parameters())


def test_half_precision_features_are_widened() -> None:
    student = answers(0, 4)
    half = Outputs(student.logits, [f.to(torch.bfloat16) for f in student.features])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert weighed(modifier(4), half, torch.ones(6)).dtype == torch.float32


def test_a_term_without_taps_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"taps: \{student: \[pooled\]\}"):
        PrimeAwareWeights(PrimeAwareWeights.Config(), Shapes(5))


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match="one value a batch"):
        weighed(modifier(4), answers(0, 4), torch.tensor(1.0))
