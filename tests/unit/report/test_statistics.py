from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdscale.report.statistics import interval, median, paired

SHARES = st.lists(st.integers(0, 10_000).map(lambda n: n / 10_000), min_size=2, max_size=8)


@given(values=SHARES)
def test_interval_is_students_t(values: list[float]) -> None:
    got = interval(values)

    assert got is not None
    assert got.half is not None
    want = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-300))
    np.testing.assert_allclose([got.mean - got.half, got.mean + got.half], want, rtol=1e-9, atol=1e-12)


@given(values=SHARES, seed=st.integers(0, 99))
def test_paired_p_is_that_of_scipy(values: list[float], seed: int) -> None:
    other = [v - 0.01 + 0.02 * float(u) for v, u in zip(values, np.random.default_rng(seed).random(8), strict=False)]

    got = paired(dict(enumerate(values)), dict(enumerate(other)))

    assert got is not None
    assert got.p == pytest.approx(stats.ttest_rel(values, other).pvalue, rel=1e-6)


def test_pairs_are_matched_by_seed_not_by_place() -> None:
    ours, theirs = {"0": 0.80, "1": 0.90, "2": 0.70}, {"2": 0.69, "1": 0.88, "7": 0.10}

    got = paired(ours, theirs)

    assert got is not None
    assert got.n == 2
    assert got.mean == pytest.approx(0.015)


def test_one_outcome_has_a_mean_and_no_interval_and_no_p() -> None:
    alone = interval([0.8])
    pair = paired({"0": 0.8}, {"0": 0.7})

    assert alone is not None
    assert (alone.half, alone.n) == (None, 1)
    assert pair is not None
    assert pair.p is None
    assert interval([]) is None
    assert paired({"0": 0.8}, {"1": 0.8}) is None


def test_differences_without_spread_are_no_evidence() -> None:
    equal = paired({"0": 0.8, "1": 0.9}, {"0": 0.8, "1": 0.9})
    shifted = paired({"0": 0.8, "1": 0.9}, {"0": 0.7, "1": 0.8})

    assert equal is not None
    assert equal.p == 1.0
    assert shifted is not None
    assert shifted.p is None


def test_median_belongs_to_a_run() -> None:
    assert median([0.3, 0.1, 0.2]) == 0.2
    assert median([0.4, 0.1, 0.2, 0.3]) == 0.2
