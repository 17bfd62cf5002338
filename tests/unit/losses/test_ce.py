from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.losses.ce import CrossEntropy, cross_entropy


def batch(labels: Tensor, labels_b: Tensor | None = None, lam: Tensor | None = None) -> Batch:
    size = len(labels)
    return Batch(torch.zeros(size, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(size), 0, 0, labels_b, lam)


def loss(**options: float) -> CrossEntropy:
    return CrossEntropy(CrossEntropy.Config(**options), Shapes(classes=5))


@given(seed=st.integers(0, 999), smoothing=st.floats(0, 0.9))
def test_equals_the_formula(seed: int, smoothing: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(scale=5, size=(7, 5)), rng.integers(0, 5, 7)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5

    got = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), smoothing)

    np.testing.assert_allclose(got, -(target * log_q).sum(1), rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 999), smoothing=st.floats(0, 0.9), shift=st.floats(-50, 50))
def test_a_shift_of_the_logits_changes_nothing(seed: int, smoothing: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = torch.from_numpy(rng.normal(scale=5, size=(7, 5))), torch.from_numpy(rng.integers(0, 5, 7))
    torch.testing.assert_close(
        cross_entropy(logits + shift, labels, smoothing), cross_entropy(logits, labels, smoothing)
    )


@given(seed=st.integers(0, 999), smoothing=st.sampled_from([0.0, 0.1]))
def test_mixed_labels_weigh_by_their_share(seed: int, smoothing: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, generator=rng, dtype=torch.float64)
    a, b = (torch.randint(0, 5, (6,), generator=rng) for _ in range(2))
    lam = torch.rand(6, generator=rng, dtype=torch.float64)
    soft = lam[:, None] * torch.eye(5)[a] + (1 - lam)[:, None] * torch.eye(5)[b]
    soft = (1 - smoothing) * soft + smoothing / 5

    got = loss(label_smoothing=smoothing)(Outputs(logits), None, batch(a, b, lam))

    torch.testing.assert_close(got, -(soft * logits.log_softmax(1)).sum(1))


def test_an_unmixed_batch_and_a_share_of_one_are_the_same() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    mixed = loss()(Outputs(logits), None, batch(labels, labels.flip(0), torch.ones(4)))
    torch.testing.assert_close(mixed, loss()(Outputs(logits), None, batch(labels)))


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0, 1.0, 2.0]], requires_grad=True)
    value = loss()(Outputs(logits), None, batch(torch.tensor([0])))
    value.sum().backward()
    assert value.item() == 0.0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_summed_in_float32(autocast: bool) -> None:
    logits = torch.randn(8, 1000, dtype=torch.bfloat16)
    labels = torch.arange(8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = loss()(Outputs(logits), None, batch(labels))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, -logits.float().log_softmax(1)[torch.arange(8), labels])


def test_smoothing_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropy.Config(label_smoothing=1.0)
