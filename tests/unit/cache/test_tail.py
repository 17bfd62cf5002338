from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.cache import tail
from kdscale.cache.tail import drawn_classes, log_sums
from tests.unit.cache.answers import Answer, answer, answers

TEMPERATURES = (0.5, 1.0, 4.0)
ROWS = torch.arange(7)


@given(drawn=answers())
def test_log_sums_are_those_of_float64(drawn: Answer) -> None:
    top = drawn.logits.amax(1, keepdim=True)
    got = log_sums(drawn.logits, top, TEMPERATURES)
    gaps = (drawn.logits.double() - top.double()).numpy()
    want = np.stack([np.log(np.exp(gaps / t).sum(1)) for t in TEMPERATURES], 1)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@given(drawn=answers(2000), seed=st.integers(0, 99))
def test_log_sums_have_no_order(drawn: Answer, seed: int) -> None:
    order = torch.randperm(drawn.logits.shape[1], generator=torch.Generator().manual_seed(seed))
    top = drawn.logits.amax(1, keepdim=True)
    assert torch.equal(log_sums(drawn.logits[:, order], top, TEMPERATURES), log_sums(drawn.logits, top, TEMPERATURES))


def draws(logits: Tensor, known: Tensor, count: int = 50, rows: Tensor = ROWS, view: int = 0) -> Tensor:
    return drawn_classes(logits, known, rows, view, TEMPERATURES, count).unflatten(1, (len(TEMPERATURES), count))


def test_what_is_known_is_never_drawn() -> None:
    logits = answer(0, 7, 30).logits
    known = logits.topk(4, dim=1).indices
    assert not (draws(logits, known, 500)[:, :, :, None] == known[:, None, None, :]).any()


def test_nothing_but_what_is_known_is_a_known_class() -> None:
    known = torch.tensor([[2, 0, 1]]).expand(7, 3)
    assert (draws(answer(0, 7, 3).logits, known) == 1).all()


def test_draws_are_functions_of_row_view_temperature_and_draw() -> None:
    logits = torch.zeros(7, 30_000)  # draws of equal logits are equal only where their points are
    known = logits.new_zeros(7, 1, dtype=torch.int64)
    first = draws(logits, known)
    assert torch.equal(draws(logits, known, 20), first[:, :, :20])
    assert torch.equal(draws(logits, known, rows=ROWS.flip(0)).flip(0), first)
    assert len(first.unique()) > 0.95 * first.numel()
    assert (draws(logits, known, view=1) == first).double().mean() < 0.01
    assert (draws(logits, known, rows=ROWS + 7) == first).double().mean() < 0.01


def test_a_tail_far_below_the_top_is_drawn_from_all_the_same() -> None:
    logits = torch.full((7, 4), -2000.0)
    logits[:, 0], logits[:, 3] = 0.0, -2001.0
    found = draws(logits, torch.zeros(7, 1, dtype=torch.int64), 400)[:, 1]
    shares = torch.stack([(found == c).double().mean() for c in range(4)])
    want = torch.tensor([0, 1, 1, np.exp(-1)], dtype=torch.float64) / (2 + np.exp(-1))
    torch.testing.assert_close(shares, want, atol=3 * 0.5 / 2800**0.5, rtol=0)


@pytest.mark.parametrize("classes", [5, 8192, 70_000])
def test_the_first_and_the_last_point_find_classes_that_have_mass(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = np.array([[0.0, 1 - 2.0**-53]]).repeat(7, 0)
    monkeypatch.setattr(tail, "_points", lambda rows, view, index, draws: ends)
    known = torch.tensor([[0, 1, classes - 1]]).expand(7, 3)
    found = draws(torch.full((7, classes), 3.0), known, 2)
    assert (found == torch.tensor([2, classes - 2])).all()
