"""How figures are written, on every screen and page alike: units, digits, and a dash for what is not known."""

from __future__ import annotations

import math

from kdscale.report.statistics import Interval, Paired

__all__ = [
    "DASH",
    "MINUS",
    "count",
    "delta",
    "duration",
    "millis",
    "p_value",
    "percent",
    "plural",
    "points",
    "short_duration",
    "times",
]

DASH = "–"
MINUS = "\N{MINUS SIGN}"
_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))


def percent(value: float | Interval | None, digits: int = 2) -> str:
    """A share in [0, 1], with its interval where there is one, in percent and without the sign."""
    if value is None:
        return DASH
    if isinstance(value, Interval):
        return f"{100 * value.mean:.{digits}f}{_half(value, digits)}"
    return DASH if math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float | Interval, digits: int = 2) -> str:
    """A difference of shares in percentage points, always signed, with its interval where there is one."""
    if isinstance(value, Interval):
        return f"{points(value.mean, digits)}{_half(value, digits)}"
    rounded = round(100 * value, digits) + 0.0
    return f"{'+' if rounded >= 0 else MINUS}{abs(rounded):.{digits}f}"


def _half(value: Interval, digits: int) -> str:
    return "" if value.half is None else f" ± {100 * value.half:.{digits}f}"


def delta(difference: Paired | None) -> str:
    """A paired difference with its p-value where there are enough pairs, e.g. `+2.10 p=.010`."""
    if difference is None:
        return ""
    return " ".join(part for part in (points(difference.mean), p_value(difference.p)) if part)


def p_value(p: float | None) -> str:
    """A p-value as papers write it; empty when there is none."""
    if p is None:
        return ""
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("=0.", "=.")


def count(value: float | int | None) -> str:
    """Parameters or operations with a decimal prefix, e.g. `4.63 M`."""
    if value is None:
        return DASH
    for scale, prefix in _SCALES:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.0f}"


def millis(value: float | int | None) -> str:
    """Milliseconds with three digits."""
    return DASH if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def duration(seconds: float | int | None) -> str:
    """Seconds in the two units that a person would say."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


def short_duration(seconds: float | None) -> str:
    """Seconds in one unit, for a column of a table."""
    if seconds is None:
        return DASH
    value, unit = (
        (seconds, "s") if seconds < 600 else (seconds / 60, "min") if seconds < 7200 else (seconds / 3600, "h")
    )
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def times(value: float) -> str:
    """A ratio, e.g. `3.4 ×`."""
    return f"{value:.1f} ×" if value < 20 else f"{value:.0f} ×"


def plural(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
