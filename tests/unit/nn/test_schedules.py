from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.config.arithmetic import weight_of
from kdscale.errors import ConfigError
from kdscale.nn.schedules import weight_schedule


@given(weight=st.floats(0, 100), steps=st.integers(1, 500), step=st.integers(0, 600))
def test_a_number_is_the_same_at_every_step(weight: float, steps: int, step: int) -> None:
    assert weight_schedule(weight, steps)(step) == weight


@given(first=st.floats(0, 10), last=st.floats(0, 10), steps=st.integers(2, 500))
def test_linear_goes_from_the_first_step_to_the_last(first: float, last: float, steps: int) -> None:
    weight = weight_schedule({"linear": [first, last]}, steps)
    assert weight(0) == first
    assert math.isclose(weight(steps - 1), last, abs_tol=1e-9)


def test_periodic_starts_again() -> None:
    weight = weight_schedule({"periodic": [4, 0, 2]}, 8)
    assert [weight(step) for step in range(8)] == [4, 3, 2, 1, 4, 3, 2, 1]


@given(weight=st.floats(0.01, 100), share=st.floats(0.01, 1), steps=st.integers(1, 500))
def test_warmup_rises_over_its_share_and_stays(weight: float, share: float, steps: int) -> None:
    values = [weight_schedule({"warmup": [weight, share]}, steps)(step) for step in range(steps + 1)]
    rise = share * steps
    assert values[0] == 0
    assert all(a <= b for a, b in pairwise(values))
    assert all(math.isclose(v, weight * step / rise) for step, v in enumerate(values) if step < rise)
    assert all(v == weight for step, v in enumerate(values) if step >= rise)


def test_twenty_epochs_of_240_are_a_twelfth_of_the_stage() -> None:
    per_epoch = 7
    weight = weight_schedule(weight_of({"warmup": [0.6, "1/12"]}, {}), 240 * per_epoch)
    assert math.isclose(weight(10 * per_epoch), 0.3)
    assert weight(20 * per_epoch) == 0.6
    assert weight(20 * per_epoch - 1) < 0.6


@pytest.mark.parametrize("wrong", [{"steps": [1, 2]}, {}, {"linear": [1]}, {"periodic": "often"}, {"warmup": [1]}])
def test_what_is_no_schedule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is not a schedule|does not fit"):
        weight_schedule(wrong, 10)
