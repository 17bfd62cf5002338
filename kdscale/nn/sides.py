"""Both sides of a comparison: what student and teacher answered, checked to fit each other and widened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kdscale.api import Outputs
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32

__all__ = ["MapShape", "logit_sides", "map_sides", "paired_shapes", "pooled_alike"]

MapShape = tuple[int, int, int]
"""Channels, height, width."""


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


def map_sides(
    term: str, student: Outputs, teacher: Outputs | None
) -> list[tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C2 H2 W2"]]]:
    """The tapped features of both sides pair by pair, as maps, in at least fp32, the teacher's detached.

    Raises:
        ShapeError: there is no teacher, the counts differ, or a feature is neither a map nor pooled.
    """
    there = _teacher(term, teacher).features
    paired_shapes(term, [tuple(f.shape[1:]) for f in student.features], [tuple(f.shape[1:]) for f in there])
    return [(_as_map(s), _as_map(t.detach())) for s, t in zip(student.features, there, strict=True)]


def paired_shapes(
    term: str, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]
) -> list[tuple[MapShape, MapShape]]:
    """Shapes of the features without B, pair by pair; a pooled feature is a map of one position.

    Raises:
        ShapeError: there are none, the counts differ, or a feature is neither a map nor pooled.
    """
    if len(student) != len(teacher) or not student:
        raise ShapeError(
            f"{term}: compares features pair by pair, but the student has {len(student)} and the teacher "
            f"{len(teacher)}; name as many taps on both sides: taps: {{student: [stage2], teacher: [stage2]}}"
        )
    return [(_map_shape(term, s), _map_shape(term, t)) for s, t in zip(student, teacher, strict=True)]


def pooled_alike(
    first: Float[Tensor, "B C H W"], second: Float[Tensor, "B C2 H2 W2"], how: Literal["avg", "max"] = "avg"
) -> tuple[Float[Tensor, "B C H3 W3"], Float[Tensor, "B C2 H3 W3"]]:
    """Pool the larger of two maps to the size of the smaller."""
    size = (min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3]))
    pool = functional.adaptive_avg_pool2d if how == "avg" else functional.adaptive_max_pool2d
    pooled = [side if side.shape[2:] == size else pool(side, size) for side in (first, second)]
    return pooled[0], pooled[1]


def _map_shape(term: str, shape: tuple[int, ...]) -> MapShape:
    """Channels, height, width of one feature. Raises: ShapeError when it is neither a map nor pooled."""
    if len(shape) not in (1, 3):
        raise ShapeError(f"{term}: takes maps (C, H, W) or pooled features (C), not {list(shape)}; tap another module")
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)


def _as_map(feature: Tensor) -> Tensor:
    wide = at_least_fp32(feature)
    return wide if wide.dim() == 4 else wide[:, :, None, None]


def _teacher(term: str, teacher: Outputs | None) -> Outputs:
    if teacher is None:
        raise ShapeError(f"{term}: this term has no teacher to listen to; name one: {{name: {term}, teacher: STAGE}}")
    return teacher
