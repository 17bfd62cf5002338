from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.errors import ShapeError
from kdscale.nn.pairwise import (
    correlations,
    directions,
    distances,
    gram,
    inner_products,
    own_rows,
    related_rows,
    unit_rows,
)


def rows(seed: int, count: int = 6, width: int = 4) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width)))


def gradient(function: object, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    function(leaf).square().sum().backward()  # type: ignore[operator]
    assert leaf.grad is not None
    return leaf.grad


@given(seed=st.integers(0, 999))
def test_rows_of_length_one_keep_their_direction(seed: int) -> None:
    x = rows(seed)
    torch.testing.assert_close(unit_rows(x), torch.nn.functional.normalize(x, dim=1))
    torch.testing.assert_close(unit_rows(x, added=0.5), x / (x.norm(dim=1, keepdim=True) + 0.5))


@pytest.mark.parametrize("length", [0.0, 1e-13])
def test_a_row_without_direction_is_zero_and_passes_no_gradient(length: float) -> None:
    x = rows(0)
    x[2] = length / 2
    assert unit_rows(x)[2].tolist() == [0.0] * 4
    assert gradient(lambda leaf: gram(unit_rows(leaf)), x).abs().max() < 100
    assert gradient(lambda leaf: unit_rows(leaf) + 1, x)[2].tolist() == [0.0] * 4


def test_the_gram_matrix_keeps_float32_under_autocast() -> None:
    x = torch.randn(5, 700)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gram(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x @ x.T)


@given(seed=st.integers(0, 99))
def test_inner_products_are_differentiated_by_one_product_a_side(seed: int) -> None:
    x, y = rows(seed).requires_grad_(), rows(seed + 1000).requires_grad_()
    torch.testing.assert_close(inner_products(x, y), x @ y.mT)
    assert torch.autograd.gradcheck(inner_products, (x, y))
    assert torch.autograd.gradcheck(gram, x)


def test_gradients_of_channels_last_maps_lie_as_the_maps_do() -> None:
    x, y = (torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last) for _ in "xy")
    for products in (lambda leaf: gram(leaf.flatten(2)), lambda leaf: inner_products(leaf.flatten(2), y.flatten(2))):
        leaf = x.clone().requires_grad_()
        [found] = torch.autograd.grad(products(leaf).square().sum(), leaf)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, gradient(products, x.contiguous()))


@given(seed=st.integers(0, 999))
def test_distances_are_those_of_numpy(seed: int) -> None:
    x = rows(seed)
    want = np.linalg.norm(x.numpy()[:, None] - x.numpy()[None], axis=2)
    np.testing.assert_allclose(distances(x), want, rtol=1e-12)


def test_neighbours_far_from_the_origin_keep_their_distance() -> None:
    x = torch.full((2, 64), 100.0)
    x[1] += 0.003
    want = float((x[1].double() - x[0].double()).norm())
    assert float(distances(x)[0, 1]) == pytest.approx(want, rel=1e-5)


def test_samples_in_one_place_are_a_millionth_apart_and_pass_no_gradient() -> None:
    x = torch.ones(3, 4, dtype=torch.float64)
    assert distances(x)[0].tolist() == [0.0, 1e-6, 1e-6]
    assert gradient(distances, x).abs().max() == 0


@given(seed=st.integers(0, 999))
def test_directions_give_the_cosines_of_the_corners(seed: int) -> None:
    x = rows(seed)
    towards, length = directions(x, slice(1, 3))
    torch.testing.assert_close((towards * length)[0].nan_to_num(0.0), x - x[1])
    got = gram(towards)
    assert got.shape == (2, 6, 6)
    for a in (1, 2):
        for i in range(6):
            for k in range(6):
                e, f = x[i] - x[a], x[k] - x[a]
                want = 0.0 if a in (i, k) else float(e @ f / e.norm() / f.norm())
                assert float(got[a - 1, i, k]) == pytest.approx(want, abs=1e-12)


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_correlations_are_pearsons_and_ignore_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x, y = rows(seed), rows(seed + 1000)
    want = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(correlations(x, y, eps=0.0), want, atol=1e-9)
    np.testing.assert_allclose(correlations(scale * x + shift, y, eps=0.0), want, atol=1e-9)


def test_a_row_constant_up_to_rounding_correlates_with_nothing_and_passes_no_gradient() -> None:
    x, y = torch.full((1, 10), 0.1), torch.randn(1, 10)
    assert float(correlations(x, y)) == 0.0
    assert gradient(lambda leaf: correlations(leaf, y) + 1, x).abs().max() == 0


@given(seed=st.integers(0, 99), added=st.sampled_from([0.0, 0.3]))
def test_gradients_by_hand_are_those_of_finite_differences(seed: int, added: float) -> None:
    x, y = rows(seed).requires_grad_(), rows(seed + 1000).requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: unit_rows(leaf, added=added), x)
    assert torch.autograd.gradcheck(correlations, (x, y))


@pytest.mark.parametrize("pairs", ["global", "local"])
def test_one_process_compares_all_its_rows(pairs: str) -> None:
    maps = torch.randn(4, 2, 3, 3)
    torch.testing.assert_close(related_rows("sp", maps, pairs), maps.reshape(4, 18))  # type: ignore[arg-type]
    assert own_rows(4, pairs) == range(4)  # type: ignore[arg-type]


def test_a_sample_alone_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"sp: .*there is one; use a larger train\.batch_size"):
        related_rows("sp", torch.zeros(1, 4), "local")
