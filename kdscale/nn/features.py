"""Student's and teacher's tapped features, side by side."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kdscale.api import Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.nn.precision import at_least_fp32

__all__ = ["as_map", "feature_pairs", "shape_pairs"]

Shape = tuple[int, ...]


def feature_pairs(term: str, student: Outputs, teacher: Outputs | None) -> list[tuple[Tensor, Tensor]]:
    """Each of the student's features with the teacher's, in at least float32; the teacher's without gradient.

    Raises:
        ShapeError: there is no teacher, or one side has more features than the other.
    """
    if teacher is None:
        raise ShapeError(f"{term}: this term has no teacher to listen to; name one: {{name: {term}, teacher: STAGE}}")
    _refuse_unpaired(term, len(student.features), len(teacher.features))
    pairs = zip(student.features, teacher.features, strict=True)
    return [(at_least_fp32(own), at_least_fp32(taught.detach())) for own, taught in pairs]


def shape_pairs(term: str, shapes: Shapes) -> list[tuple[Shape, Shape]]:
    """The shapes of what `feature_pairs` will give, without B. Raises: ShapeError."""
    _refuse_unpaired(term, len(shapes.student), len(shapes.teacher))
    return list(zip(map(tuple, shapes.student), map(tuple, shapes.teacher), strict=True))


def as_map(term: str, features: Float[Tensor, "B K *space"]) -> Float[Tensor, "B K H W"]:
    """A map as it is, and pooled features as a map of one pixel. Raises: ShapeError for anything else."""
    if features.dim() not in (2, 4):
        raise ShapeError(
            f"{term}: compares maps (B, K, H, W) or pooled features (B, K), not {list(features.shape)}; "
            "tap another layer"
        )
    return features if features.dim() == 4 else features[:, :, None, None]


def _refuse_unpaired(term: str, own: int, taught: int) -> None:
    if own != taught:
        raise ShapeError(
            f"{term}: {own} features of the student and {taught} of the teacher; it compares them pair by pair, "
            "so name as many taps on both sides: taps: {student: [...], teacher: [...]}"
        )
