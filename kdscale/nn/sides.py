"""Both sides of a comparison: what student and teacher answered, checked to fit each other and widened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdscale.api import Outputs
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32

__all__ = [
    "MapShape",
    "feature_sides",
    "logit_sides",
    "map_sides",
    "paired",
    "paired_shapes",
    "pooled",
    "pooled_alike",
    "total",
]

MapShape = tuple[int, int, int]
"""Channels, height, width."""
T = TypeVar("T")


def logit_sides(
    term: str, student: Outputs, teacher: Outputs | None
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Both logits, in at least fp32, the teacher's detached.

    Args:
        term: the loss that compares them, for messages.
        student: what the student answered.
        teacher: likewise; None when the term was given none.

    Raises:
        ShapeError: there is no teacher, or it tells other classes apart.
    """
    there = _teacher(term, teacher)
    if there.logits.shape != student.logits.shape:
        raise ShapeError(
            f"{term}: the teacher's logits are {list(there.logits.shape)}, the student's "
            f"{list(student.logits.shape)}; both networks must tell the same classes apart"
        )
    return at_least_fp32(student.logits), at_least_fp32(there.logits.detach())


def feature_sides(term: str, student: Outputs, teacher: Outputs | None) -> list[tuple[Tensor, Tensor]]:
    """The tapped features of both sides pair by pair, of any shape, in at least fp32, the teacher's detached.

    Raises:
        ShapeError: there is no teacher, or the counts differ.
    """
    pairs = paired(term, student.features, _teacher(term, teacher).features)
    return [(at_least_fp32(own), at_least_fp32(theirs.detach())) for own, theirs in pairs]


def map_sides(
    term: str, student: Outputs, teacher: Outputs | None
) -> list[tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C2 H2 W2"]]]:
    """As `feature_sides`, as maps: a pooled feature is a map of one position.

    Raises:
        ShapeError: there is no teacher, the counts differ, or a feature is neither a map nor pooled.
    """
    return [(_as_map(term, own), _as_map(term, theirs)) for own, theirs in feature_sides(term, student, teacher)]


def paired(term: str, student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """Both sides' features, or their shapes, pair by pair. Raises: ShapeError: there are none, or the counts differ."""
    if len(student) != len(teacher) or not student:
        raise ShapeError(
            f"{term}: compares features pair by pair, but the student has {len(student)} and the teacher "
            f"{len(teacher)}; name as many taps on both sides: taps: {{student: [stage2], teacher: [stage2]}}"
        )
    return list(zip(student, teacher, strict=True))


def paired_shapes(
    term: str, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]
) -> list[tuple[MapShape, MapShape]]:
    """Shapes of the maps that `map_sides` will give, without B.

    Raises:
        ShapeError: there are none, the counts differ, or a feature is neither a map nor pooled.
    """
    return [(_map_shape(term, own), _map_shape(term, theirs)) for own, theirs in paired(term, student, teacher)]


def pooled_alike(
    first: Float[Tensor, "B C H W"], second: Float[Tensor, "B C2 H2 W2"], how: Literal["avg", "max"] = "avg"
) -> tuple[Float[Tensor, "B C H3 W3"], Float[Tensor, "B C2 H3 W3"]]:
    """Pool the larger of two maps to the size of the smaller."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    return _pooled_to(first, size, how), _pooled_to(second, size, how)


def _pooled_to(feature: Tensor, size: tuple[int, int], how: Literal["avg", "max"]) -> Tensor:
    height, width = feature.shape[2:]
    if (height, width) == size:
        return feature
    if how == "avg":
        return functional.adaptive_avg_pool2d(feature, size)
    if feature.requires_grad or height % size[0] or width % size[1]:
        return functional.adaptive_max_pool2d(feature, size)
    # the same numbers in a third of the time; of a tie, its gradient would go to all sides
    down, across = height // size[0], width // size[1]
    return reduce(torch.maximum, (feature[:, :, i::down, j::across] for i in range(down) for j in range(across)))


def pooled(feature: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
    """Average a map over its positions; one of a single position, as a pooled feature is, only changes its shape."""
    return feature.flatten(1) if feature.shape[2:] == (1, 1) else feature.mean(dim=(2, 3))


def total(values: Sequence[Tensor]) -> Tensor:
    """Add up what taps or terms give: of one without an operation, where a stack would cost four."""
    return reduce(torch.add, values)


def _map_shape(term: str, shape: tuple[int, ...]) -> MapShape:
    """Channels, height, width of one feature. Raises: ShapeError when it is neither a map nor pooled."""
    if len(shape) not in (1, 3):
        mend = (
            "say how to read these tokens: {module: NAME, as: map} (or pooled)"
            if len(shape) == 2
            else "tap another module"
        )
        raise ShapeError(f"{term}: takes maps (C, H, W) or pooled features (C), not {list(shape)}; {mend}")
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)


def _as_map(term: str, feature: Tensor) -> Float[Tensor, "B C H W"]:
    channels, height, width = _map_shape(term, tuple(feature.shape[1:]))
    return feature if feature.dim() == 4 else feature.view(-1, channels, height, width)


def _teacher(term: str, teacher: Outputs | None) -> Outputs:
    if teacher is None:
        raise ShapeError(f"{term}: this term has no teacher to listen to; name one: {{name: {term}, teacher: STAGE}}")
    return teacher
