from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.cc import CorrelationCongruence, adjacent_gap, gaussian

LOGITS = torch.zeros(6, 3)
BATCH = Batch(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), torch.arange(6), view=0)
KERNELS = ["rbf", "bilinear", "adjacent"]


def rows(seed: int, width: int = 5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(6, width)))


def loss(**options: Any) -> CorrelationCongruence:
    torch.manual_seed(0)
    return CorrelationCongruence(CorrelationCongruence.Config(**options), Shapes(3, [(5,)], [(7,)])).double()


def value(module: CorrelationCongruence, student: Tensor, teacher: Tensor) -> Tensor:
    return module(Outputs(LOGITS, [student]), Outputs(LOGITS, [teacher]), BATCH)


@pytest.mark.parity
@given(seed=st.integers(0, 999), gamma=st.floats(0.05, 1))
def test_a_long_series_is_the_gaussian_kernel(seed: int, gamma: float) -> None:
    x = rows(seed)
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    want = np.exp(-gamma * ((unit[:, None] - unit[None]) ** 2).sum(2))
    np.testing.assert_allclose(gaussian(x, gamma, 20), want, rtol=1e-10)


@pytest.mark.parity
@given(seed=st.integers(0, 999))
def test_the_bilinear_kernel_equals_the_papers_formula(seed: int) -> None:
    module, s, t = loss(kernel="bilinear", embedding=4), rows(seed), rows(seed + 1, 7)
    e, f = module.embed_s[0](s).detach().numpy(), module.embed_t[0](t).detach().numpy()
    np.testing.assert_allclose(value(module, s, t).item(), ((e @ e.T - f @ f.T) ** 2).sum() / 36, rtol=1e-10)


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_the_gaussian_kernel_ignores_rotations_and_lengths(seed: int, scale: float) -> None:
    x = rows(seed)
    turned = torch.linspace(1, scale, 6, dtype=torch.float64)[:, None] * x @ torch.linalg.qr(rows(seed + 1)[:5]).Q
    torch.testing.assert_close(gaussian(turned, 0.4, 2), gaussian(x, 0.4, 2))


@pytest.mark.parametrize("kernel", ["rbf", "bilinear"])
@given(seed=st.integers(0, 999))
def test_the_order_of_the_samples_is_nothing_to_the_papers_kernels(kernel: str, seed: int) -> None:
    module, s, t, order = loss(kernel=kernel), rows(seed), rows(seed + 1, 7), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(value(module, s[order], t[order]), value(module, s, t))


@given(seed=st.integers(0, 999))
def test_the_order_of_the_samples_counts_for_adjacent(seed: int) -> None:
    module, s, t = loss(kernel="adjacent"), rows(seed), rows(seed + 1, 7)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert not torch.isclose(value(module, s[order], t[order]), value(module, s, t), rtol=1e-4)


def test_adjacent_multiplies_neighbours() -> None:
    s, t = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 4.0]]), torch.zeros(3, 2)
    assert float(adjacent_gap(s, t)) == ((1 * 3 + 2 * 1) + (3 * 0 + 1 * 4)) / 2


@pytest.mark.parametrize(("option", "trains"), [("frozen", False), ("trained", True)])
def test_the_teachers_embedding_trains_where_asked(option: str, trains: bool) -> None:
    module = loss(teacher_embedding=option)
    value(module, rows(0), rows(1, 7)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.embed_s.parameters())
    assert [p.grad is not None for p in module.embed_t.parameters()] == [trains, trains]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("student", [torch.zeros(6, 5), torch.ones(6, 5), torch.eye(6, 5) * 100])
def test_zero_and_identical_features_stay_finite(kernel: str, student: Tensor) -> None:
    s, module = student.double().requires_grad_(), loss(kernel=kernel)
    torch.nn.init.zeros_(module.embed_s[0].bias)  # so that zero features have zero embeddings
    got = value(module, s, rows(0, 7))
    got.backward()
    assert torch.isfinite(got)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    assert kernel != "rbf" or s.grad.abs().max() < 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(kernel: str, half: torch.dtype) -> None:
    module, s, t = loss(kernel=kernel).float(), 100 * torch.randn(6, 5).to(half), 100 * torch.randn(6, 7).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value(module, s, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(module, s.float(), t.float()))


def test_a_sample_alone_is_refused() -> None:
    with pytest.raises(ShapeError, match="cc"):
        value(loss(), torch.ones(1, 5).double(), torch.ones(1, 7).double())
