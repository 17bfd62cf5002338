"""Weights: arithmetic over params, and schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.config.arithmetic import SCHEDULES, evaluate, weight_of
from kdscale.errors import ConfigError
from kdscale.nn import schedules

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(a=NUMBERS, b=NUMBERS, c=NUMBERS)
def test_equals_what_python_makes_of_it(a: float, b: float, c: float) -> None:
    params = {"a": a, "b": b, "c": c}
    assert math.isclose(evaluate("1 - a * (b - -c) + 2", params), 1 - a * (b + c) + 2, rel_tol=1e-11, abs_tol=1e-11)
    if b:
        assert math.isclose(evaluate("a/b", params), a / b, rel_tol=1e-11, abs_tol=1e-11)


def test_equal_weights_are_equal_numbers() -> None:
    assert evaluate("1 - lam", {"lam": 0.9}) == 0.1
    assert weight_of("1 - lam - gam", {"lam": 0.9, "gam": 0.1}) == 0
    assert weight_of({"linear": ["4 * lam", 1]}, {"lam": 0.5}) == {"linear": [2.0, 1.0]}


@pytest.mark.parametrize(
    "text",
    [
        "lam.real", "abs(lam)", "__import__('os')", "[1]", "lam if lam else 1", "lam ** 2", "'a'", "True", "lambda: 1",
        "1 +", "", "x" * 3, "9" * 5000, "1/0", "lam/(lam - lam)", "(" * 300 + "1" + ")" * 300, "1e308 * 10 - lam",
    ],
)  # fmt: skip
def test_nothing_else_is_understood(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        weight_of(text, {"lam": 0.5})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        ("1 - lam", r"1 - lam is -0\.5 here \(lam 1\.5\)"), (-1, "-1: a weight is a number that is not below 0"),
        (math.inf, "not below 0"), (math.nan, "not below 0"), (True, "no weight"), (None, "no weight"),
        ({"linaer": [1, 2]}, "no schedule; there are: linear, periodic, warmup"), ({}, "no schedule"),
        ({"linear": [1]}, "takes a list of 2 numbers"), ({"linear": 1}, "takes a list"),
        ({"linear": [1, -1]}, "not below 0"), ({"periodic": [1, 2, 0]}, "periods must be above 0"),
        ({"warmup": [1, 0]}, "a share of the stage: above 0"), ({"warmup": [1, 20]}, "at most 1"),
        ("lm", r"lm is not in params \(lam\)"),
    ],
)  # fmt: skip
def test_weights_that_are_none(weight: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        weight_of(weight, {"lam": 1.5})


def test_schedules_that_are_accepted_are_those_that_train() -> None:
    assert SCHEDULES.keys() == schedules.SCHEDULES.keys()
    for name, count in SCHEDULES.items():
        weight = schedules.weight_schedule({name: [4.0, 1.0, 2.0][:count]}, 10)
        assert all(0 <= weight(step) <= 4 for step in range(10))
