from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.pkt import ProbabilisticTransfer, Reduction, neighbour_gap

LOGITS = torch.zeros(6, 3)
BATCH = Batch(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)


def rows(seed: int, width: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(6, width)))


REDUCTIONS: list[Reduction] = ["code", "row", "offdiagonal"]


def value(student: Tensor, teacher: Tensor, reduction: Reduction = "code") -> Tensor:
    loss = ProbabilisticTransfer(ProbabilisticTransfer.Config(reduction=reduction), Shapes(3))
    return loss(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_equals_the_papers_formula(seed: int) -> None:
    """Off the diagonal, where the paper's sum runs."""

    def picked(
        x: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (unit @ unit.T + 1) / 2 * (1 - np.eye(6))
        return np.asarray(kernel / kernel.sum(1, keepdims=True))

    s, t = rows(seed), rows(seed + 1000, 9)
    q, p, off = picked(s.numpy()), picked(t.numpy()), ~np.eye(6, dtype=bool)
    want = (p[off] * np.log(p[off] / q[off])).sum() / 6
    np.testing.assert_allclose(neighbour_gap(s, t, "offdiagonal"), want, rtol=1e-3, atol=1e-5)


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_the_row_form_is_n_times_the_codes(seed: int) -> None:
    s, t = rows(seed), rows(seed + 1000, 9)
    torch.testing.assert_close(neighbour_gap(s, t, "row"), 6 * neighbour_gap(s, t, "code"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_a_turned_copy_with_rows_of_any_length_has_no_loss(reduction: Reduction, seed: int, scale: float) -> None:
    t = rows(seed)
    turned = torch.linspace(1, scale, 6, dtype=torch.float64)[:, None] * t @ torch.linalg.qr(rows(seed + 1)[:5]).Q
    assert abs(float(neighbour_gap(turned, t, reduction))) < 1e-6


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(seed=st.integers(0, 999))
def test_the_order_of_the_samples_is_nothing_to_it(reduction: Reduction, seed: int) -> None:
    s, t, order = rows(seed), rows(seed + 1), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(neighbour_gap(s[order], t[order], reduction), neighbour_gap(s, t, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("student", [torch.zeros(6, 5), torch.ones(6, 5), torch.eye(6, 5) * 1e4])
def test_zero_and_identical_features_stay_finite_and_small_in_gradient(reduction: Reduction, student: Tensor) -> None:
    s = student.clone().requires_grad_()
    got = value(s, rows(0).float(), reduction)
    got.backward()
    assert torch.isfinite(got)
    assert s.grad is not None
    assert s.grad.abs().max() < 1


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_opposite_samples_stay_finite(reduction: Reduction) -> None:
    s = torch.tensor([[1.0, 1e-4, 3.0], [-1.0, -1e-4, -3.0]], requires_grad=True)
    got = neighbour_gap(s, torch.tensor([[1.0, 2.0], [2.0, -1.0]]), reduction)
    got.backward()
    assert torch.isfinite(got)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    s, t = (1e4 * torch.randn(6, 64).to(half) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(s, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(s.float(), t.float()))


def test_a_sample_alone_is_refused() -> None:
    with pytest.raises(ShapeError, match="pkt"):
        value(torch.ones(1, 4), torch.ones(1, 4))
