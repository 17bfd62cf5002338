from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.config.arithmetic import weight_of
from kdscale.errors import ConfigError
from kdscale.nn.schedules import Weight, some_dropped, weight_schedule


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


# --------------------------------------------------------------------------- terms left out


def constant(count: int) -> dict[str, Weight]:
    return {f"kd_{i}": lambda step, i=i: 1.0 + i for i in range(count)}  # type: ignore[misc]


@given(st.data(), st.integers(1, 6), st.integers(0, 2**31), st.integers(0, 10_000))
def test_at_each_step_so_many_weigh_nothing_and_the_others_what_they_did(
    data: st.DataObject, terms: int, seed: int, step: int
) -> None:
    count = data.draw(st.integers(0, terms))
    left = {term: weight(step) for term, weight in some_dropped(constant(terms), count, seed).items()}
    assert sum(weight == 0 for weight in left.values()) == count
    assert all(weight in (0, constant(terms)[term](step)) for term, weight in left.items())


@given(st.integers(0, 2**31), st.lists(st.integers(0, 500), min_size=1, max_size=20), st.permutations(range(4)))
def test_the_choice_knows_no_order_and_no_past(seed: int, steps: list[int], order: list[int]) -> None:
    whole = constant(4)
    asked = some_dropped(whole, 2, seed)
    for step in steps:
        fresh = some_dropped({f"kd_{i}": whole[f"kd_{i}"] for i in order}, 2, seed)
        assert {term: weight(step) for term, weight in asked.items()} == {t: w(step) for t, w in fresh.items()}


def test_every_term_is_left_out_as_often_as_any_other() -> None:
    """The mean weight is (1 - count / terms) of the whole: 4000 steps, within four standard deviations."""
    left, steps = some_dropped(constant(4), 1, seed=3), 4000
    for number, weight in enumerate(left.values()):
        share = sum(weight(step) == 0 for step in range(steps)) / steps
        assert abs(share - 1 / 4) < 4 * math.sqrt(3 / 16 / steps), number


def test_another_seed_chooses_otherwise() -> None:
    one, other = (some_dropped(constant(3), 1, seed) for seed in (0, 1))
    assert any(one["kd_0"](step) != other["kd_0"](step) for step in range(50))
