"""The pixels of views: what was drawn, applied to images (B, H, W, K) of bytes, in integers throughout.

Both loaders call these kernels, so their batches are equal bit for bit, on every machine.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from kdscale.data.kernel import kernel

__all__ = ["blend", "cut_out", "cut_paste", "jitter_colours", "resample_boxes", "shift_and_flip"]

UNIT_BITS = 16
"""Factors and shares are multiples of 2^-16, as drawn."""

ONE = np.uint64(1)


# --------------------------------------------------------------------------- geometry


@kernel
@no_type_check
def shift_and_flip(images, shifts, out):
    """Copy (B, T, T, K) centred into (B, S, S, K), shifted and then mirrored; zeros outside.

    `shifts` (B, 3): pixels down and right by which the window moves over the image, and whether to mirror.
    """
    size, source, channels = out.shape[1], images.shape[1], out.shape[3]
    margin = (size - source) // 2
    given, taken = images.reshape(-1), out.reshape(-1)
    for b in range(len(out)):
        down, right = shifts[b, 0] - margin, shifts[b, 1] - margin
        first = min(size, max(0, -right))
        last = max(first, min(size, source - right))
        lead = size - last if shifts[b, 2] else first
        for y in range(size):
            line = (b * size + y) * size
            if y + down < 0 or y + down >= source:
                clear(taken, line * channels, size * channels)
                continue
            start = ((b * source + y + down) * source + first + right) * channels
            clear(taken, line * channels, lead * channels)
            clear(taken, (line + lead + last - first) * channels, (size - lead - last + first) * channels)
            if shifts[b, 2]:
                mirror_pixels(given, start, taken, (line + lead) * channels, last - first, channels)
            else:
                copy_bytes(given, start, taken, (line + lead) * channels, (last - first) * channels)


# Unsigned positions in flat arrays: numba lets a signed one count from the end, and that test in the
# innermost loop costs up to ten times the copy itself.


@kernel
@no_type_check
def clear(taken, to, count):
    """Set `count` bytes to zero."""
    at = np.uint64(to)
    for i in range(np.uint64(count)):
        taken[at + i] = 0


@kernel
@no_type_check
def copy_bytes(given, start, taken, to, count):
    """Copy `count` bytes."""
    source, at = np.uint64(start), np.uint64(to)
    for i in range(np.uint64(count)):
        taken[at + i] = given[source + i]


@kernel
@no_type_check
def mirror_pixels(given, start, taken, to, count, channels):
    """Copy `count` pixels of `channels` bytes in reverse order."""
    source, pixel = np.uint64(start), np.uint64(channels)
    if channels == 1:
        end = np.uint64(to + count - 1)
        for i in range(np.uint64(count)):
            taken[end - i] = given[source + i]
        return
    end = np.uint64(to + (count - 1) * channels)
    for i in range(np.uint64(0), np.uint64(count * channels), pixel):
        for k in range(pixel):
            taken[end - i + k] = given[source + i + k]


WEIGHT_BITS, SPARE_BITS = 14, 6
"""Weights of a resampled line add up to 2^14; between the two passes 8 bits of the fraction are kept."""


@kernel
@no_type_check
def line_weights(length, size):
    """Weights of resampling `length` pixels to `size`: a triangle as wide as the coarser grid, so without aliases.

    Pixel i of the result lies at ((2i + 1) length - size) / (2 size) of the source, so 2 size times
    everything is an integer. Returns starts (size,), counts (size,) and weights (size, most): pixel i is the
    sum over j < counts[i] of weights[i, j] times pixel starts[i] + j.
    """
    starts, counts = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.empty((size, 2 * (max(length, size) // size) + 3), np.int64)
    wide = 2 * max(length, size)
    for i in range(size):
        centre = (2 * i + 1) * length - size
        first = max(0, (centre - wide) // (2 * size) + 1)
        total, count, heaviest = 0, 0, 0
        while first + count < length and 2 * size * (first + count) < centre + wide:
            weights[i, count] = wide - abs(2 * size * (first + count) - centre)
            total += weights[i, count]
            if weights[i, count] > weights[i, heaviest]:
                heaviest = count
            count += 1
        rest = 1 << WEIGHT_BITS
        for j in range(count):
            weights[i, j] = (weights[i, j] << WEIGHT_BITS) // total
            rest -= weights[i, j]
        weights[i, heaviest] += rest
        starts[i], counts[i] = first, count
    return starts, counts, weights


@kernel
@no_type_check
def resample_boxes(images, boxes, out):
    """Resample one box (top, left, height, width) of each image to fill `out` (B, S, S, K)."""
    size, channels = out.shape[1], out.shape[3]
    for b in range(len(out)):
        top, left, height, width = boxes[b, 0], boxes[b, 1], boxes[b, 2], boxes[b, 3]
        narrowed = np.empty((height, size * channels), np.int32)
        narrow(images[b], top, left, width, size, narrowed)
        lower(narrowed, out[b].reshape(size, size * channels))


@kernel
@no_type_check
def narrow(image, top, left, width, size, out):
    """Resample `width` pixels of as many rows as `out` (H, size K) has, with 8 bits of fraction."""
    channels = image.shape[2]
    starts, counts, weights = line_weights(width, size)
    pixel = np.uint64(channels)
    for y in range(len(out)):
        line = image[top + y].reshape(-1)
        for x in range(size):
            taps, start = np.uint64(counts[x]), np.uint64(left + starts[x]) * pixel
            to = np.uint64(x) * pixel
            for k in range(pixel):
                total = np.int64(1 << (SPARE_BITS - 1))
                for j in range(taps):
                    total += weights[x, j] * line[start + j * pixel + k]
                out[y, to + k] = total >> SPARE_BITS


@kernel
@no_type_check
def lower(lines, out):
    """Resample lines (H, L) of 8 fraction bits to (S, L) bytes; whole lines at a time, which is fast."""
    height, length = lines.shape
    size = len(out)
    starts, counts, weights = line_weights(height, size)
    shift = np.int32(2 * WEIGHT_BITS - SPARE_BITS)
    total = np.empty(length, np.int32)  # at most 255 * 2^8 * 2^14 and the rounding, below 2^31
    for y in range(size):
        for i in range(length):
            total[i] = 1 << (shift - 1)
        for j in range(counts[y]):
            weight, line = np.int32(weights[y, j]), lines[starts[y] + j]
            for i in range(length):
                total[i] += weight * line[i]
        line = out[y]
        for i in range(length):
            line[i] = total[i] >> shift


# --------------------------------------------------------------------------- colours, in place


@kernel
@no_type_check
def towards(value, anchor, factor):
    """Rounded anchor + factor (value - anchor), as a byte; the factor in units of 2^-16."""
    moved = anchor + (((value - anchor) * factor + (1 << (UNIT_BITS - 1))) >> UNIT_BITS)
    return np.uint8(min(255, max(0, moved)))


@kernel
@no_type_check
def luma(flat, start, channels):
    """Grey value of the pixel at `start`: the weights of ITU-R 601 for three channels, else the mean."""
    at = np.uint64(start)
    if channels == 3:
        red, green, blue = np.int64(flat[at]), np.int64(flat[at + ONE]), np.int64(flat[at + ONE + ONE])
        return (299 * red + 587 * green + 114 * blue + 500) // 1000
    total = np.int64(channels // 2)
    for k in range(np.uint64(channels)):
        total += np.int64(flat[at + k])
    return total // channels


@kernel
@no_type_check
def remap(flat, anchor, factor):
    """Move every byte away from `anchor`, or towards it, by the factor."""
    table = np.empty(256, np.uint8)
    for value in range(256):
        table[value] = towards(np.int64(value), anchor, factor)
    for i in range(np.uint64(len(flat))):
        flat[i] = table[flat[i]]


@kernel
@no_type_check
def jitter_colours(images, factors):
    """Scale brightness, then contrast about the mean grey, then saturation about each pixel's own grey."""
    channels = images.shape[3]
    for b in range(len(images)):
        flat = images[b].reshape(-1)
        pixels = len(flat) // channels
        remap(flat, 0, factors[b, 0])
        total = np.int64(pixels // 2)
        for start in range(0, len(flat), channels):
            total += luma(flat, start, channels)
        remap(flat, total // pixels, factors[b, 1])
        for start in range(0, len(flat), channels):
            grey = luma(flat, start, channels)
            for i in range(np.uint64(start), np.uint64(start + channels)):
                flat[i] = towards(np.int64(flat[i]), grey, factors[b, 2])


@kernel
@no_type_check
def cut_out(images, centres, side, fill):
    """Set a square of `side` pixels around each centre, cut off at the border, to `fill` (K,)."""
    size = images.shape[1]
    for b in range(len(images)):
        top, left = centres[b, 0] - side // 2, centres[b, 1] - side // 2
        for y in range(max(0, top), min(size, top + side)):
            for x in range(max(0, left), min(size, left + side)):
                for k in range(len(fill)):
                    images[b, y, x, k] = fill[k]


# --------------------------------------------------------------------------- mixing, in place


@kernel
@no_type_check
def blend(images, partners, shares):
    """Mixup: each image keeps its share, its partner has the rest."""
    for b in range(len(images)):
        own, other = images[b].reshape(-1), partners[b].reshape(-1)
        for i in range(len(own)):
            own[i] = towards(np.int64(own[i]), np.int64(other[i]), shares[b])


@kernel
@no_type_check
def cut_paste(images, partners, centres, sides):
    """CutMix: a square around each centre, cut off at the border, comes from the partner; returns its pixels (B,)."""
    size, channels = images.shape[1], images.shape[3]
    own, other = images.reshape(-1), partners.reshape(-1)
    pasted = np.empty(len(images), np.int64)
    for b in range(len(images)):
        top, left = centres[b, 0] - sides[b] // 2, centres[b, 1] - sides[b] // 2
        bottom, right = min(size, top + sides[b]), min(size, left + sides[b])
        top, left = max(0, top), max(0, left)
        for y in range(top, bottom):
            start = ((b * size + y) * size + left) * channels
            copy_bytes(other, start, own, start, (right - left) * channels)
        pasted[b] = (bottom - top) * (right - left)
    return pasted
