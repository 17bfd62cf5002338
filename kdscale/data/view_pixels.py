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


# --------------------------------------------------------------------------- geometry


@kernel
@no_type_check
def shift_and_flip(images, shifts, out):
    """Copy (B, T, T, K) centred into (B, S, S, K), shifted and then mirrored; zeros outside.

    `shifts` (B, 3): pixels down and right by which the window moves over the image, and whether to mirror.
    """
    size, source = out.shape[1], images.shape[1]
    margin = (size - source) // 2
    for b in range(len(out)):
        down, right = shifts[b, 0] - margin, shifts[b, 1] - margin
        first, last = min(size, max(0, -right)), max(0, min(size, source - right))
        for y in range(size):
            if y + down < 0 or y + down >= source or first >= last:
                out[b, y] = 0
            elif shifts[b, 2]:
                out[b, y, : size - last] = 0
                mirror_line(images[b, y + down, first + right : last + right], out[b, y, size - last : size - first])
                out[b, y, size - first :] = 0
            else:
                out[b, y, :first] = 0
                out[b, y, first:last] = images[b, y + down, first + right : last + right]
                out[b, y, last:] = 0


@kernel
@no_type_check
def mirror_line(line, out):
    """Copy pixels (W, K) in reverse order."""
    width, channels = line.shape
    for x in range(width):
        for k in range(channels):
            out[width - 1 - x, k] = line[x, k]


WEIGHT_BITS, SPARE_BITS = 14, 6
"""Weights of a resampled line add up to 2^14; between the two passes 8 bits of the fraction are kept."""


@kernel
@no_type_check
def line_weights(length, size, starts, weights):
    """Weights of resampling `length` pixels to `size`: a triangle as wide as the coarser grid, so without aliases.

    Pixel i of the result lies at ((2i + 1) length - size) / (2 size) of the source, so 2 size times
    everything is an integer. Pixel i is the sum over j of weights[i, j] times pixel starts[i] + j.
    """
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
        weights[i, count:] = 0
        starts[i] = first


@kernel
@no_type_check
def resample_lines(lines, size, shift, out):
    """Resample each of the lines (N, L, K) to (N, size, K), dividing the weighted sums by 2^shift."""
    count, length, channels = lines.shape
    taps = 2 * (max(length, size) // size) + 3
    starts, weights = np.empty(size, np.int64), np.empty((size, taps), np.int64)
    line_weights(length, size, starts, weights)
    for n in range(count):
        for i in range(size):
            used = min(taps, length - starts[i])
            for k in range(channels):
                total = np.int64(1 << (shift - 1))
                for j in range(used):
                    total += weights[i, j] * lines[n, starts[i] + j, k]
                out[n, i, k] = total >> shift


@kernel
@no_type_check
def resample_boxes(images, boxes, out):
    """Resample one box (top, left, height, width) of each image to fill `out` (B, S, S, K)."""
    size, channels = out.shape[1], out.shape[3]
    for b in range(len(out)):
        top, left, height, width = boxes[b, 0], boxes[b, 1], boxes[b, 2], boxes[b, 3]
        narrowed = np.empty((height, size, channels), np.int64)
        resample_lines(images[b, top : top + height, left : left + width], size, SPARE_BITS, narrowed)
        shift = 2 * WEIGHT_BITS - SPARE_BITS
        resample_lines(narrowed.transpose(1, 0, 2), size, shift, out[b].transpose(1, 0, 2))


# --------------------------------------------------------------------------- colours, in place


@kernel
@no_type_check
def towards(value, anchor, factor):
    """Rounded anchor + factor (value - anchor), as a byte; the factor in units of 2^-16."""
    moved = anchor + (((value - anchor) * factor + (1 << (UNIT_BITS - 1))) >> UNIT_BITS)
    return np.uint8(min(255, max(0, moved)))


@kernel
@no_type_check
def luma(pixel):
    """Grey value of one pixel (K,): the weights of ITU-R 601 for three channels, else the mean."""
    if len(pixel) == 3:
        return (299 * np.int64(pixel[0]) + 587 * np.int64(pixel[1]) + 114 * np.int64(pixel[2]) + 500) // 1000
    total = np.int64(len(pixel) // 2)
    for value in pixel:
        total += value
    return total // len(pixel)


@kernel
@no_type_check
def mean_luma(image):
    """Rounded mean grey of an image (H, W, K)."""
    height, width, _ = image.shape
    total = np.int64(height * width // 2)
    for y in range(height):
        for x in range(width):
            total += luma(image[y, x])
    return total // (height * width)


@kernel
@no_type_check
def jitter_colours(images, factors):
    """Scale brightness, then contrast about the mean grey, then saturation about each pixel's own grey."""
    size, channels = images.shape[1], images.shape[3]
    for b in range(len(images)):
        flat = images[b].reshape(-1)
        for i in range(len(flat)):
            flat[i] = towards(np.int64(flat[i]), 0, factors[b, 0])
        mean = mean_luma(images[b])
        for i in range(len(flat)):
            flat[i] = towards(np.int64(flat[i]), mean, factors[b, 1])
        pixels = flat.reshape(size * size, channels)
        for i in range(len(pixels)):
            grey = luma(pixels[i])
            for k in range(channels):
                pixels[i, k] = towards(np.int64(pixels[i, k]), grey, factors[b, 2])


@kernel
@no_type_check
def cut_out(images, centres, side, fill):
    """Set a square of `side` pixels around each centre, cut off at the border, to `fill` (K,)."""
    size = images.shape[1]
    for b in range(len(images)):
        top, left = centres[b, 0] - side // 2, centres[b, 1] - side // 2
        for y in range(max(0, top), min(size, top + side)):
            for x in range(max(0, left), min(size, left + side)):
                images[b, y, x] = fill


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
    size = images.shape[1]
    pasted = np.empty(len(images), np.int64)
    for b in range(len(images)):
        top, left = centres[b, 0] - sides[b] // 2, centres[b, 1] - sides[b] // 2
        bottom, right = min(size, top + sides[b]), min(size, left + sides[b])
        top, left = max(0, top), max(0, left)
        images[b, top:bottom, left:right] = partners[b, top:bottom, left:right]
        pasted[b] = (bottom - top) * (right - left)
    return pasted
