"""Terms on a part of the batch: which samples count, and what the sum over them is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kdscale import ranks
from kdscale.api import Batch, Outputs, Taught, Term

__all__ = ["Pick", "count_of", "picks_of", "predicted", "term_selects"]


@dataclass(frozen=True)
class Pick:
    """Which of this rank's samples a term counts, and how many its sum stands for."""

    mask: Bool[Tensor, "B"]
    size: Float[Tensor, ""] | int
    """Divides the sum over this rank's samples, so that the mean over ranks is the global batch's value."""

    def mean(self, values: Float[Tensor, "B"]) -> Float[Tensor, ""]:
        """Average what counts; of no sample it is 0, with a gradient of 0."""
        return (torch.where(self.mask, values, 0.0) / self.size).sum()


def predicted(answer: Outputs) -> Int64[Tensor, "B"]:
    """The classes that a network holds most probable."""
    return answer.logits.argmax(1) if answer.top is None else answer.top


def term_selects(term: Term) -> bool:
    """Whether a term may be left without a sample."""
    return any(modifier.selects for modifier in term.modifiers)


def picks_of(terms: Sequence[Term], taught: Taught, batch: Batch) -> list[Pick | None]:
    """What each term picks; None where it counts every sample.

    Called by all ranks. Under `normalise: selected` a sum is divided by the picked samples' number on an average rank,
    which one all-reduce finds for all terms.
    """
    masks = {at: _mask(term, taught, batch) for at, term in enumerate(terms) if term_selects(term)}
    own = [at for at in masks if any(modifier.normalise == "selected" for modifier in terms[at].modifiers)]
    sizes: dict[int, Tensor] = {}
    if own:
        found = ranks.sum_(torch.stack([masks[at].sum() for at in own])).clamp(min=1)
        sizes = dict(zip(own, found.double() / ranks.world(), strict=True))
    samples = len(batch.rows)
    return [Pick(masks[at], sizes.get(at, samples)) if at in masks else None for at in range(len(terms))]


def count_of(terms: Sequence[Term], taught: Taught, batch: Batch) -> Int64[Tensor, ""]:
    """How many of this rank's samples any of the terms picks; each of them picks some of all."""
    return reduce(torch.logical_or, [_mask(term, taught, batch) for term in terms]).sum()


def _mask(term: Term, taught: Taught, batch: Batch) -> Bool[Tensor, "B"]:
    """The samples that all of a term's modifiers pick."""
    teacher = taught[term.teacher] if term.teacher is not None else None
    return reduce(torch.logical_and, [m.mask(teacher, batch) for m in term.modifiers if m.selects])
