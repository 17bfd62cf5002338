"""Answers of made-up networks, whose gradients can be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kdscale.api import Batch, Outputs

__all__ = ["CLASSES", "LAYOUTS", "SIZE", "Probe", "Probes", "probe", "row", "rows_of"]

SIZE, CLASSES = 6, 5
"""Samples, and classes of their labels."""
LAYOUTS: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((4, 6, 6), (8, 3, 3), (8,)), ((8,),), ((4, 6, 6),), ((4, 6, 6), (8, 3, 3)), ((9, 16),),
)  # fmt: skip
"""Shapes of tapped features: two maps and a vector; a vector; a map; two maps; tokens."""


@dataclass(frozen=True)
class Probe(Outputs):
    """An answer with the leaves that it was made from."""

    leaves: list[Tensor] = field(default_factory=list)
    """Behind the logits, and each feature."""


class Probes(NamedTuple):
    """One batch, as a loss is given it."""

    student: Probe
    teacher: Probe
    batch: Batch


def probe(
    dtype: torch.dtype,
    features: Sequence[tuple[int, ...]] = LAYOUTS[0],
    *,
    logits: float | None = None,
    zeros_of: Sequence[str] = (),
    seed: int = 0,
) -> Probes:
    """A student's and a teacher's answers to one batch.

    Args:
        dtype: of logits and features.
        features: shapes of each side's, without B.
        logits: how large each is, if it is not to be drawn from a normal distribution; its sign is.
        zeros_of: of `student` and `teacher`, whose first row is zero.
        seed: of the draws.
    """
    rng = torch.Generator().manual_seed(seed)

    def outputs(whose: str) -> Probe:
        shapes = [(SIZE, CLASSES), *((SIZE, *shape) for shape in features)]
        drawn = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
        if logits is not None:
            drawn[0] = drawn[0].sign() * logits
        pixels, slopes = (torch.rand(n, 64, generator=rng, dtype=torch.float64).to(dtype) for n in (SIZE, CLASSES))
        for x in (*drawn, pixels) if whose in zeros_of else ():
            x[0] = 0
        leaves = [x.to(dtype).requires_grad_() for x in drawn]
        pixels.requires_grad_()
        return Probe(leaves[0] + pixels @ slopes.T, leaves[1:], pixels, leaves=leaves)

    student, teacher = (outputs(whose) for whose in ("student", "teacher"))
    labels = torch.randint(0, CLASSES, (SIZE,), generator=rng)
    images = torch.zeros(SIZE, 1, 8, 8, dtype=torch.uint8)
    return Probes(student, teacher, Batch(images, labels, torch.arange(SIZE), view=0))


def row(outputs: Outputs, i: int) -> Outputs:
    """Sample i of an answer, alone."""
    return Outputs(outputs.logits[i : i + 1], [feature[i : i + 1] for feature in outputs.features])


def rows_of(batch: Batch, i: int) -> Batch:
    """Sample i of a batch, alone."""
    one = slice(i, i + 1)
    return replace(batch, images=batch.images[one], labels=batch.labels[one], rows=batch.rows[one])
