"""What is drawn for a view: offsets, boxes, factors and partners, each a function of (seed of the view, row).

A row's state hashes its number under the view's seed; the draw of a slot is one more round of SplitMix64.
A slot belongs to one operation, so turning one on never changes another. Everything is integers, or
float64 operations that IEEE 754 rounds exactly, so every machine draws the same.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np

from kdscale.data.kernel import kernel

__all__ = ["UNIT_BITS", "boxes", "centres", "factors", "partners", "row_states", "shares", "shifts"]

UNIT_BITS = 16
"""Factors and shares are multiples of 2^-16."""

ONE = np.uint64(1)
GAMMA = np.uint64(0x9E3779B97F4A7C15)
MULTIPLY_1, MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31, S32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))

DOWN, RIGHT, FLIP, CUTOUT, BRIGHTNESS, CONTRAST, SATURATION, CUTMIX, PARTNER = (np.uint64(n) for n in range(0, 18, 2))
RESIZED_CROP, SHARE = np.uint64(64), np.uint64(1024)
"""First slots of what is drawn until it fits: ten tries of four, and as many pairs as needed."""


# --------------------------------------------------------------------------- bits, integers, reals


@kernel
@no_type_check
def mixed(z):
    """SplitMix64's finaliser."""
    z = (z ^ (z >> S30)) * MULTIPLY_1
    z = (z ^ (z >> S27)) * MULTIPLY_2
    return z ^ (z >> S31)


@kernel
@no_type_check
def row_states(seed, rows):
    """`draws.hash64` of each row (B,) under `seed` (uint64)."""
    states = np.empty(len(rows), np.uint64)
    for b in range(len(rows)):
        states[b] = mixed(mixed(np.uint64(rows[b]) * GAMMA + seed))
    return states


@kernel
@no_type_check
def bits(state, slot):
    """64 uniform bits."""
    return mixed(state + (slot + ONE) * GAMMA)


@kernel
@no_type_check
def below(state, slot, n):
    """A uniform integer in [0, n), n < 2^32."""
    return np.int64(((bits(state, slot) >> S32) * np.uint64(n)) >> S32)


@kernel
@no_type_check
def unit(state, slot):
    """A uniform float64 in (0, 1): never 0, of which there is no logarithm."""
    return (np.float64(bits(state, slot) >> S11) + 0.5) * (1.0 / 9007199254740992.0)


# The C library's exp and log differ between machines in the last bit; sums, products and quotients do not.


@kernel
@no_type_check
def exp_(x):
    """e^x by halving the argument and squaring the series; 0 where it would be below 1e-304."""
    if x < -700.0:
        return 0.0
    halvings = 0
    while abs(x) > 0.125:
        x *= 0.5
        halvings += 1
    total = 1.0
    for n in range(12, 0, -1):
        total = 1.0 + total * x / n
    for _ in range(halvings):
        total *= total
    return total


@kernel
@no_type_check
def log_(x):
    """Natural logarithm of x > 0: artanh's series on the mantissa, which lies in [0.5, 1)."""
    mantissa, exponent = math.frexp(x)
    s = (mantissa - 0.75) / (mantissa + 0.75)
    series = 0.0
    for n in range(25, 0, -2):
        series = series * s * s + 1.0 / n
    return 2.0 * s * series + exponent * 0.6931471805599453 - 0.2876820724517809


# --------------------------------------------------------------------------- what operations draw


@kernel
@no_type_check
def shifts(states, pad, flip):
    """(B, 3): pixels down and right in [-pad, pad], and whether to mirror."""
    drawn = np.zeros((len(states), 3), np.int64)
    for b in range(len(states)):
        drawn[b, 0] = below(states[b], DOWN, 2 * pad + 1) - pad
        drawn[b, 1] = below(states[b], RIGHT, 2 * pad + 1) - pad
        drawn[b, 2] = flip * np.int64(bits(states[b], FLIP) & ONE)
    return drawn


@kernel
@no_type_check
def boxes(states, source, scale, ratio):
    """(B, 4): top, left, height, width of a box with drawn area share and aspect ratio (log-uniform).

    Source: torchvision's RandomResizedCrop: ten tries, then the largest centred box of a legal ratio.
    """
    drawn = np.empty((len(states), 4), np.int64)
    for b in range(len(states)):
        top, left, height, width = one_box(states[b], source, scale, ratio)
        drawn[b, 0], drawn[b, 1], drawn[b, 2], drawn[b, 3] = top, left, height, width
    return drawn


@kernel
@no_type_check
def one_box(state, source, scale, ratio):
    """One row's box."""
    low, high = log_(ratio[0]), log_(ratio[1])
    for attempt in range(10):
        slot = RESIZED_CROP + np.uint64(4 * attempt)
        area = source * source * (scale[0] + unit(state, slot) * (scale[1] - scale[0]))
        aspect = exp_(low + unit(state, slot + ONE) * (high - low))
        width, height = int(math.sqrt(area * aspect) + 0.5), int(math.sqrt(area / aspect) + 0.5)
        if 0 < width <= source and 0 < height <= source:
            top = below(state, slot + np.uint64(2), source - height + 1)
            left = below(state, slot + np.uint64(3), source - width + 1)
            return top, left, height, width
    width = source if ratio[1] >= 1.0 else max(1, int(source * ratio[1] + 0.5))
    height = source if ratio[0] <= 1.0 else max(1, int(source / ratio[0] + 0.5))
    return (source - height) // 2, (source - width) // 2, height, width


@kernel
@no_type_check
def factors(states, reach):
    """(B, 3) factors of brightness, contrast and saturation in [1 - reach, 1 + reach], in units of 2^-16."""
    drawn = np.empty((len(states), 3), np.int64)
    slots = (BRIGHTNESS, CONTRAST, SATURATION)
    for b in range(len(states)):
        for i in range(3):
            drawn[b, i] = (1 << UNIT_BITS) - reach[i] + below(states[b], slots[i], 2 * reach[i] + 1)
    return drawn


@kernel
@no_type_check
def centres(states, size, cutmix):
    """(B, 2): row and column of a pixel; those of cutmix and of cutout are independent."""
    drawn = np.empty((len(states), 2), np.int64)
    slot = CUTMIX if cutmix else CUTOUT
    for b in range(len(states)):
        drawn[b, 0] = below(states[b], slot, size)
        drawn[b, 1] = below(states[b], slot + ONE, size)
    return drawn


@kernel
@no_type_check
def partners(states, pool):
    """(B,) rows out of `pool`."""
    drawn = np.empty(len(states), np.int64)
    for b in range(len(states)):
        drawn[b] = pool[below(states[b], PARTNER, len(pool))]
    return drawn


@kernel
@no_type_check
def shares(states, alpha):
    """(B,) draws of Beta(alpha, alpha), in units of 2^-16."""
    drawn = np.empty(len(states), np.int64)
    for b in range(len(states)):
        drawn[b] = np.int64(beta(states[b], alpha) * (1 << UNIT_BITS) + 0.5)
    return drawn


@kernel
@no_type_check
def beta(state, alpha):
    """One draw of Beta(alpha, alpha).

    Source: Jöhnk's method in logarithms for alpha <= 1, else rejection under the density's own maximum.
    """
    slot = SHARE
    while True:
        u, v = unit(state, slot), unit(state, slot + ONE)
        slot += np.uint64(2)
        if alpha <= 1.0:
            x, y = log_(u) / alpha, log_(v) / alpha
            # For a tiny alpha both powers underflow; their ratio, which is the answer, does not.
            if exp_(x) + exp_(y) <= 1.0:
                return 1.0 / (1.0 + exp_(y - x)) if y < x else exp_(x - y) / (1.0 + exp_(x - y))
        elif log_(v) <= (alpha - 1.0) * log_(4.0 * u * (1.0 - u)):
            return u
