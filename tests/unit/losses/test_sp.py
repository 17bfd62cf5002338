from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.sp import SimilarityPreserving, similarity_gap

LOGITS = torch.zeros(6, 3)
BATCH = Batch(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)
LOSS = SimilarityPreserving(SimilarityPreserving.Config(), Shapes(3))


def rows(seed: int, width: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(6, width)))


def value(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    return LOSS(Outputs(LOGITS, student), Outputs(LOGITS, teacher), BATCH)


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_equals_the_papers_formula(seed: int) -> None:
    def similar(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        g = x.numpy() @ x.numpy().T
        return np.asarray(g / np.sqrt((g**2).sum(1, keepdims=True)))

    s, t = rows(seed), rows(seed + 1000, 9)
    want = ((similar(t) - similar(s)) ** 2).sum() / 36
    np.testing.assert_allclose(similarity_gap(s, t), want, rtol=1e-10)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_a_rotated_and_scaled_copy_has_no_loss(seed: int, scale: float) -> None:
    t = rows(seed)
    turn = torch.linalg.qr(rows(seed + 1, 5)[:5]).Q
    assert float(similarity_gap(scale * t @ turn, t)) < 1e-20


@given(seed=st.integers(0, 999), scale=st.floats(2, 100))
def test_the_scale_of_one_sample_counts(seed: int, scale: float) -> None:
    """Rows of the products are normalised and not the features: their lengths say how much each sample weighs."""
    s = rows(seed)
    longer = torch.cat([scale * s[:1], s[1:]])
    assert float(similarity_gap(longer, s)) > 1e-6


@given(seed=st.integers(0, 999))
def test_the_order_of_the_samples_is_nothing_to_it(seed: int) -> None:
    s, t, order = rows(seed), rows(seed + 1), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(similarity_gap(s[order], t[order]), similarity_gap(s, t))


def test_several_taps_add_up() -> None:
    s, t = [rows(0), rows(1)], [rows(2), rows(3, 8)]
    torch.testing.assert_close(value(s, t), value(s[:1], t[:1]) + value(s[1:], t[1:]))


@pytest.mark.parametrize("student", [torch.zeros(6, 5), torch.ones(6, 5), torch.eye(6, 5) * 1e4])
def test_zero_and_identical_features_stay_finite_and_small_in_gradient(student: Tensor) -> None:
    s = student.clone().requires_grad_()
    got = value([s], [rows(0).float()])
    got.backward()
    assert torch.isfinite(got)
    assert s.grad is not None
    assert s.grad.abs().max() < 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    s, t = (4 * torch.rand(6, 256, 8, 8).add(1).to(half) for _ in range(2))  # products beyond fp16's largest
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value([s], [t])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value([s.float()], [t.float()]))


def test_a_sample_alone_is_refused() -> None:
    one = Outputs(LOGITS[:1], [torch.ones(1, 4)])
    with pytest.raises(ShapeError, match="sp"):
        LOSS(one, one, BATCH)
