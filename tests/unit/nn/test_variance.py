from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.nn.variance import LogVariance, weigh_by_variance


@given(seed=st.integers(0, 999))
def test_is_least_where_the_variance_is_the_error(seed: int) -> None:
    error = torch.rand(6, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    best = error.log().requires_grad_()
    value = weigh_by_variance(error, best, 0.0)
    torch.testing.assert_close(value, 1 + error.log())
    [grad] = torch.autograd.grad(value.sum(), best)
    torch.testing.assert_close(grad, torch.zeros(6).double())
    for step in (-0.3, 0.3):
        assert (weigh_by_variance(error, best + step, 0.0) > value).all()


def test_a_variance_of_one_leaves_the_error() -> None:
    torch.testing.assert_close(weigh_by_variance(torch.arange(4.0), torch.zeros(4), 0.0), torch.arange(4.0))


def test_predictions_stay_in_bounds() -> None:
    head = LogVariance(3, 2).eval()
    with torch.no_grad():
        head.linear.weight.fill_(1e6)
    out = head(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]))
    torch.testing.assert_close(out, torch.tensor([[10.0, 10.0], [-10.0, -10.0]]))
