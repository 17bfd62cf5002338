from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.rkd import Relational, angle_gap, distance_gap

LOGITS = torch.zeros(6, 3)
BATCH = Batch(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)


def rows(seed: int, width: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(6, width)))


def value(student: Tensor, teacher: Tensor, **options: float) -> Tensor:
    loss = Relational(Relational.Config(**options), Shapes(3))
    return loss(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


def huber(gap: float) -> float:
    return gap**2 / 2 if abs(gap) < 1 else abs(gap) - 0.5


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_distances_equal_the_papers_formula(seed: int) -> None:
    def relative(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        apart = np.linalg.norm(x.numpy()[:, None] - x.numpy()[None], axis=2)
        return np.asarray(apart / (apart.sum() / 30))

    s, t = rows(seed), rows(seed + 1000, 9)
    want = np.mean([huber(gap) for gap in (relative(s) - relative(t)).flat])
    np.testing.assert_allclose(distance_gap(s, t), want, rtol=1e-10)


@pytest.mark.parity
@given(seed=st.integers(0, 99))
def test_angles_equal_the_papers_formula(seed: int) -> None:
    def cosine(x: Tensor, i: int, j: int, k: int) -> float:
        e, f = (x[i] - x[j]).numpy(), (x[k] - x[j]).numpy()
        return 0.0 if j in (i, k) else float(e @ f / np.linalg.norm(e) / np.linalg.norm(f))

    s, t = rows(seed), rows(seed + 1000, 9)
    corners = [(i, j, k) for i in range(6) for j in range(6) for k in range(6)]
    want = np.mean([huber(cosine(s, *corner) - cosine(t, *corner)) for corner in corners])
    np.testing.assert_allclose(angle_gap(s, t, range(6), 4), want, rtol=1e-10)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_a_turned_scaled_and_moved_copy_has_no_loss(seed: int, scale: float, shift: float) -> None:
    t = rows(seed)
    turned = scale * t @ torch.linalg.qr(rows(seed + 1)[:5]).Q + shift
    assert float(value(turned, t)) < 1e-15


@given(seed=st.integers(0, 999))
def test_the_order_of_the_samples_is_nothing_to_it(seed: int) -> None:
    s, t, order = rows(seed), rows(seed + 1), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(value(s[order], t[order]), value(s, t))


@given(seed=st.integers(0, 999), chunk=st.integers(1, 7))
def test_the_chunk_changes_neither_value_nor_gradient(seed: int, chunk: int) -> None:
    t, got = rows(seed + 1, 9), []
    for size in (6, chunk):
        s = rows(seed).requires_grad_()
        (3 * angle_gap(s, t, range(6), size)).backward()
        got.append((angle_gap(s.detach(), t, range(6), size), s.grad))
    torch.testing.assert_close(got[0], got[1])


def test_the_angles_gradient_is_that_of_finite_differences() -> None:
    t = rows(1, 9)
    assert torch.autograd.gradcheck(lambda s: angle_gap(s, t, range(2, 5), 2), rows(0).requires_grad_())


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, found.numel()) if isinstance(found, Tensor) else self.numbers
        return found


def test_angles_take_memory_for_a_chunk_only() -> None:
    """Nothing in the making is larger than a chunk, and only the gradient is kept for the backward pass."""
    s = torch.randn(40, 5, requires_grad=True)
    with Largest() as largest:
        got = angle_gap(s, torch.randn(40, 5), range(40), 2)
    assert largest.numbers == 2 * 40 * 40
    assert got.grad_fn is not None
    assert [tensor.shape for tensor in got.grad_fn.saved_tensors] == [s.shape]  # type: ignore[attr-defined]


@pytest.mark.parametrize("student", [torch.zeros(6, 5), torch.ones(6, 5), torch.eye(6, 5) * 1e4])
def test_zero_and_identical_features_stay_finite_and_small_in_gradient(student: Tensor) -> None:
    s = student.clone().requires_grad_()
    got = value(s, rows(0).float())
    got.backward()
    assert torch.isfinite(got)
    assert s.grad is not None
    assert s.grad.abs().max() < 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    s, t = (1e4 * torch.randn(6, 64).to(half) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(s, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(s.float(), t.float()))


def test_a_weight_of_zero_leaves_a_part_out() -> None:
    s, t = rows(0), rows(1)
    parts = value(s, t, distance=0.0) + value(s, t, angle=0.0)
    torch.testing.assert_close(value(s, t), parts)


def test_a_sample_alone_is_refused() -> None:
    with pytest.raises(ShapeError, match="rkd"):
        value(torch.ones(1, 4), torch.ones(1, 4))


def test_both_weights_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="distance and angle"):
        Relational.Config(distance=0, angle=0)
