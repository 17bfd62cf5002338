"""Draws: functions of (seed, row) with the distributions they claim, each operation's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdscale.data import view_draws
from kdscale.draws import hash64

STATES = view_draws.row_states(np.uint64(12345), np.arange(50_000))
MASK = 2**64 - 1


def bits_in_python(state: int, slot: int) -> int:
    z = (state + (slot + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_rows_state_is_its_hash_under_the_seed(seed: int) -> None:
    rows = np.array([0, 1, 59_999, 2**40], np.int64)
    assert np.array_equal(view_draws.row_states(np.uint64(seed), rows), hash64(seed, rows))


def test_shifts_are_those_of_pythons_own_integers() -> None:
    drawn = view_draws.shifts(STATES[:100], 4, 1)
    for state, (down, right, mirrored) in zip(STATES[:100].tolist(), drawn.tolist(), strict=True):
        assert down == (bits_in_python(state, 0) >> 32) * 9 // 2**32 - 4
        assert right == (bits_in_python(state, 2) >> 32) * 9 // 2**32 - 4
        assert mirrored == bits_in_python(state, 4) & 1


def test_shifts_are_uniform_and_independent() -> None:
    drawn = view_draws.shifts(STATES, 2, 1)
    counts = np.zeros((5, 5, 2))
    np.add.at(counts, (drawn[:, 0] + 2, drawn[:, 1] + 2, drawn[:, 2]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.001


def test_turning_on_one_operation_does_not_change_another() -> None:
    assert np.array_equal(view_draws.shifts(STATES, 3, 0)[:, :2], view_draws.shifts(STATES, 3, 1)[:, :2])
    firsts = [view_draws.centres(STATES, 1000, which)[:, 0] for which in (False, True)]
    assert abs(np.corrcoef(*firsts)[0, 1]) < 0.02


def test_boxes_have_the_area_and_aspect_that_were_asked_for() -> None:
    source = 10_000  # large, so that rounding to pixels does not show
    top, left, height, width = view_draws.boxes(STATES, source, (0.08, 1.0), (3 / 4, 4 / 3)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= source).all()
    assert (left + width <= source).all()
    area, aspect = height * width / source**2, width / height
    assert area.min() > 0.079
    assert 0.7499 < aspect.min() < 0.751
    assert 1.332 < aspect.max() < 1.3335
    small = area < 0.5  # where every aspect fits, nothing was drawn again
    assert stats.kstest(np.log(aspect[small]), stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > 0.001


def test_a_box_that_never_fits_is_the_largest_centred_one() -> None:
    boxes = view_draws.boxes(STATES[:50], 100, (1.0, 1.0), (2.0, 2.0))
    assert (boxes == [25, 0, 50, 100]).all()
    boxes = view_draws.boxes(STATES[:50], 100, (1.0, 1.0), (0.5, 0.5))
    assert (boxes == [0, 25, 100, 50]).all()


def test_factors_reach_as_far_as_they_may_and_no_further() -> None:
    drawn = view_draws.factors(STATES, (26214, 0, 65536)) / 65536
    assert 0.6 <= drawn[:, 0].min() < 0.601
    assert 1.399 < drawn[:, 0].max() <= 1.4001
    assert (drawn[:, 1] == 1).all()
    assert drawn[:, 2].min() >= 0
    assert abs(drawn[:, 0].mean() - 1) < 0.003


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 1.5, 8.0, 100.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    drawn = view_draws.shares(STATES, alpha) / 65536
    inner = (drawn > 0.001) & (drawn < 0.999)  # near the ends 2^-16 is coarse for a small alpha
    whole = stats.beta(alpha, alpha)
    low, high = whole.cdf(0.001), whole.cdf(0.999)
    assert abs(inner.mean() - (high - low)) < 0.01
    assert stats.kstest(drawn[inner], lambda x: (whole.cdf(x) - low) / (high - low)).pvalue > 0.001


def test_a_tiny_alpha_leaves_one_of_the_two_images() -> None:
    drawn = view_draws.shares(STATES[:1000], 0.001)
    assert ((drawn < 655) | (drawn > 65536 - 655)).mean() > 0.98
    assert 0.4 < (drawn > 32768).mean() < 0.6


def test_partners_are_drawn_evenly_from_the_pool() -> None:
    pool = np.arange(100, 110, dtype=np.int64)
    drawn = view_draws.partners(STATES, pool)
    assert stats.chisquare(np.unique(drawn, return_counts=True)[1]).pvalue > 0.001
    assert set(drawn) == set(pool)


def test_exponential_and_logarithm_are_right_to_a_dozen_digits() -> None:
    for x in np.linspace(-690, 40, 500).tolist():
        assert view_draws.exp_(x) == pytest.approx(math.exp(x), rel=1e-11)
    for x in np.geomspace(1e-300, 10, 500).tolist():
        assert view_draws.log_(x) == pytest.approx(math.log(x), rel=1e-13, abs=1e-13)
