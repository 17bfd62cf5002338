"""Terms that weigh nothing at some steps (stochastic DGKD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdscale.api import Term
from kdscale.nn.schedules import some_dropped

__all__ = ["with_drops"]


def with_drops(terms: Sequence[Term], count: int, seed: int) -> list[Term]:
    """Let `count` of those terms of a pass that hear a teacher weigh nothing at each step.

    They are computed all the same: which parameters have a gradient does not change from step to step, so that ranks
    agree without asking, and the metrics go on showing what was not listened to.
    """
    weights = {term.id: term.weight for term in terms if term.teacher is not None}
    left = some_dropped(weights, count, seed)
    return [replace(term, weight=left.get(term.id, term.weight)) for term in terms]
