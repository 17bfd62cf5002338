"""Completes the answer of a teacher of which a record holds only some logits: who gets the mass of the others.

A class is known where its logit is in the record: the k largest, and the label's own (the partner's too where views
are mixed), wherever it ranks. A known class has p = exp(logit / t - log_sum), to the rounding of its float16 logit.
What is left of 1 is the residual, spread over the other classes by the layout's policy:

    uniform     evenly
    ghost       in proportion to the student's own distribution, not differentiated. The KL divergence then has the
                value and the gradient of one over the known classes and a single bucket for the rest
    to_target   all of it to the label (lam of it, and 1 - lam to the partner's label, where views are mixed), on top
                of the label's own mass
    sampled     by how often each was drawn when the record was made. Drawn were classes that are not known, by their
                own probabilities, so a class's expectation over views is its probability, wherever the label ranks
    renorm      to nobody: the known classes are scaled to 1

Source: uniform: Wu et al., "TinyViT", ECCV 2022, arXiv:2207.10666; Shen, Xing, "A Fast Knowledge Distillation
Framework", ECCV 2022, arXiv:2112.01528. ghost, to_target, sampled, and what renorm costs: Anshumann et al., "Sparse
Logit Sampling", ACL 2025, arXiv:2503.16870.
Deviation: in those only the k largest are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kdscale.cache.layout import Layout, Residual
from kdscale.errors import CacheMiss, ShapeError

__all__ = ["Sparse", "complete"]

NO_MASS = -1000.0
"""Log-probability of a class without mass: its exp is 0 in float64 too, and 0 times it is 0."""
LEAST_MASS = torch.finfo(torch.float32).eps
"""Least residual: what 1 minus a sum in float32 can tell from 0. Rounded logits can add up to more than 1."""


@dataclass(frozen=True)
class Sparse:
    """What a batch of `topk` records holds, with its labels. J known classes: the k kept, then each label's.

    Attributes:
        first: False where a label was kept already, or is the partner's too: its mass counts once.
        logits: minus the row's largest.
        log_sums: of the softened logits minus the row's largest, for each of the layout's temperatures.
        drawn: N classes for each temperature, one after the other; none but with `sampled`.
        shares: of the residual, for each label; of `to_target` alone.
    """

    layout: Layout
    classes: Int64[Tensor, "B J"]
    first: Bool[Tensor, "B J"]
    logits: Float[Tensor, "B J"]
    row_max: Float[Tensor, "B 1"]
    log_sums: Float[Tensor, "B T"]
    drawn: Int64[Tensor, "B TN"]
    shares: Float[Tensor, "B L"]


def complete(record: Sparse, temperature: float, student: Float[Tensor, "B C"] | None) -> Float[Tensor, "B C"]:
    """Logits whose softmax at `temperature` is the completed distribution; known classes keep their own logits.

    Classes without mass get finite logits whose probability is 0, in float64 too.

    Args:
        record: what is known.
        temperature: one that the layout lists.
        student: logits whose softmax is the student's distribution, for `ghost`; None: it knows nothing yet.

    Raises:
        CacheMiss: the records say nothing about this temperature.
        ShapeError: the student tells other classes apart.
    """
    slot = _slot(record.layout, temperature)
    if student is not None and student.shape[1] != record.layout.classes:
        raise ShapeError(f"the student tells {student.shape[1]} classes apart, the cache {record.layout.classes}")
    with torch.no_grad():
        log_sum = record.log_sums[:, slot : slot + 1]
        known = record.logits / temperature - log_sum
        left = (1 - (known.exp() * record.first).sum(1, keepdim=True)).clamp(min=LEAST_MASS)
        log_p = _RESIDUALS[record.layout.residual](record, left, slot, student)
        logits = (temperature * (log_p + log_sum)).expand(-1, record.layout.classes)
        logits = logits.scatter(1, record.classes, record.logits)
        if record.layout.residual == "to_target":
            labels = slice(record.layout.k, None)
            log_p = torch.logaddexp(known[:, labels], (record.shares * left).log())
            logits = logits.scatter(1, record.classes[:, labels], temperature * (log_p + log_sum))
        return logits + record.row_max


def _slot(layout: Layout, temperature: float) -> int:
    """Which of the layout's temperatures this is."""
    if temperature not in layout.temperatures:
        held = ", ".join(f"{t:g}" for t in layout.temperatures)
        raise CacheMiss(
            f"the cache holds no log-sum for temperature {temperature:g}, only for {held}: build one that lists it"
        )
    return layout.temperatures.index(temperature)


# Each gives log-probabilities of the classes that are not known, (B, C), or (B, 1) where all are equal; what it says
# about known ones is passed over.


def _uniform(
    record: Sparse, left: Float[Tensor, "B 1"], slot: int, student: Float[Tensor, "B C"] | None
) -> Float[Tensor, "B 1"]:
    others = record.layout.classes - record.first.sum(1, keepdim=True)
    return (left / others.clamp(min=1)).log()


def _ghost(
    record: Sparse, left: Float[Tensor, "B 1"], slot: int, student: Float[Tensor, "B C"] | None
) -> Float[Tensor, "B _"]:
    if student is None:
        return _uniform(record, left, slot, student)
    others = student.float().scatter(1, record.classes, torch.finfo(torch.float32).min)
    return left.log() + others.log_softmax(1).clamp(min=NO_MASS)


def _sampled(
    record: Sparse, left: Float[Tensor, "B 1"], slot: int, student: Float[Tensor, "B C"] | None
) -> Float[Tensor, "B C"]:
    draws = record.layout.draws
    drawn = record.drawn[:, slot * draws : (slot + 1) * draws]
    counts = left.new_zeros(len(left), record.layout.classes)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype))
    log_p = (counts.gather(1, drawn) * (left / draws)).log()
    return torch.full_like(counts, NO_MASS).scatter(1, drawn, log_p)  # drawn twice, written twice: the same


def _nobody(
    record: Sparse, left: Float[Tensor, "B 1"], slot: int, student: Float[Tensor, "B C"] | None
) -> Float[Tensor, "B 1"]:
    return torch.full_like(left, NO_MASS)


_RESIDUALS: Mapping[Residual, Callable[[Sparse, Tensor, int, Tensor | None], Tensor]] = {
    "uniform": _uniform, "ghost": _ghost, "to_target": _nobody, "sampled": _sampled, "renorm": _nobody,
}  # fmt: skip
