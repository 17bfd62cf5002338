from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.api import Batch
from kdscale.nn.negatives import draw_negatives

ROWS = 50
BATCH = Batch(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 1, 4]), torch.tensor([3, 9, 0, 49]), 0)
UNKNOWN = torch.full((ROWS,), -1)


@given(step=st.integers(0, 10**7))
def test_a_sample_is_never_its_own_negative(step: int) -> None:
    found = draw_negatives(replace(BATCH, step=step), UNKNOWN, 200)
    assert found.shape == (4, 200)
    assert int(found.min()) >= 0
    assert int(found.max()) < ROWS
    assert not (found == BATCH.rows[:, None]).any()


def test_every_other_row_is_drawn_about_as_often() -> None:
    found = draw_negatives(BATCH, UNKNOWN, 49_000)
    for row, drawn in zip(BATCH.rows.tolist(), found, strict=True):
        counts = torch.bincount(drawn, minlength=ROWS)
        assert counts[row] == 0
        others = counts[torch.arange(ROWS) != row]
        assert int(others.min()) > 850  # 1000 expected, standard deviation 31
        assert int(others.max()) < 1150


def test_steps_rows_and_draws_are_independent() -> None:
    now, later = (draw_negatives(replace(BATCH, step=step), UNKNOWN, 1000) - BATCH.rows[:, None] for step in (0, 1))
    for a, b in ((now, later), (now[:2], now[2:]), (now[:, :-1], now[:, 1:]), (now, later.roll(1, 1))):
        assert abs(float((a % ROWS == b % ROWS).float().mean()) - 1 / 49) < 0.01


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole = draw_negatives(BATCH, UNKNOWN, 30)
    one = replace(BATCH.first(3), rows=BATCH.rows[1:], labels=BATCH.labels[1:])
    assert draw_negatives(one, UNKNOWN, 30).equal(whole[1:])


def test_known_rows_of_the_own_class_are_drawn_again() -> None:
    labels = torch.arange(ROWS) % 5
    found = draw_negatives(BATCH, labels, 5000)
    share = (labels[found] == BATCH.labels[:, None]).float().mean()
    assert share < 0.02  # 1/5 thrice: 0.008
    assert share > 0.002
