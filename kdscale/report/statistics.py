"""Means over seeds with their uncertainty: Student's t, because seeds are few.

Only independent outcomes count: a stage that several seeds share is one outcome, not several.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

__all__ = ["Interval", "Paired", "interval", "median", "paired"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the half-width of its two-sided 95 % t-interval; `half` is None for one outcome."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean difference over pairs; `p` is two-sided, None for one pair or when all pairs differ equally."""

    mean: float
    half: float | None
    p: float | None
    n: int


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and 95 % interval; None without values."""
    if not values:
        return None
    mean, error = _mean_and_error(values)
    half = None if error is None else float(stdtrit(len(values) - 1, 0.975)) * error
    return Interval(mean, half, len(values))


def paired(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> Paired | None:
    """Compare outcomes that share a key (a seed) by a paired t-test; None when no key is shared."""
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    found = interval(differences)
    if found is None:
        return None
    return Paired(found.mean, found.half, _p(differences), found.n)


def median(values: Sequence[float]) -> float:
    """The lower median: always one of the values, so that it belongs to a run."""
    return sorted(values)[(len(values) - 1) // 2]


def _p(differences: Sequence[float]) -> float | None:
    mean, error = _mean_and_error(differences)
    if error is None:
        return None
    if error <= 1e-12:
        # No spread at all: the t statistic is infinite or undefined, and neither is evidence.
        return 1.0 if abs(mean) <= 1e-12 else None
    return float(2 * stdtr(len(differences) - 1, -abs(mean / error)))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (None for one value)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
