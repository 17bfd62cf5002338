"""Running means of the losses, kept on the device and read by the host only when something is logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdscale import ranks
from kdscale.api import Losses
from kdscale.errors import NonFiniteLoss

__all__ = ["Meter", "Ring"]


class Ring:
    """The last steps' values of equal length, on their device."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._values: Tensor | None = None
        self._of = [-1] * steps

    def put(self, step: int, values: Tensor) -> None:
        """Keep a step's values; nothing waits for the device."""
        if self._values is None or self._values.shape[1] != len(values):
            self._values = values.new_zeros(self._steps, len(values))
        self._values[step % self._steps].copy_(values)
        self._of[step % self._steps] = step

    def at(self, step: int) -> list[float] | None:
        """A step's values; None where they are gone."""
        if self._values is None or self._of[step % self._steps] != step:
            return None
        found: list[float] = self._values[step % self._steps].tolist()
        return found


class Meter:
    """Adds up each pass's total and terms; one all-reduce and one host read a logging interval.

    Args:
        terms: names of the terms, over all passes.
        device: where the losses are.
        figures: names of what the strategy measures besides.
        remembers: how many steps' own values are kept, to be looked at where one is not finite.
    """

    def __init__(
        self, terms: Sequence[str], device: torch.device, figures: Sequence[str] = (), *, remembers: int = 1
    ) -> None:
        self._recent = Ring(remembers)
        self._names = ("loss", *terms, *figures)
        self._figures = frozenset(figures)
        self._keys = ("train/loss", *(f"train/term/{term}" for term in terms), *(f"train/{name}" for name in figures))
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._first_bad = torch.full((len(self._names),), -1, dtype=torch.int64, device=device)
        self._steps = 0
        self._seconds: dict[str, float] = {}

    def add(self, losses: Mapping[str, Losses], step: int) -> None:
        """Take in one step's losses without waiting for the device; what a pass that was left out has counts as 0."""
        none = torch.zeros_like(self._sums[0])
        total = torch.stack([none, *(part.total.detach().double() for part in losses.values())]).sum()
        by_name = {name: one for part in losses.values() for name, one in (*part.terms.items(), *part.figures.items())}
        values = torch.stack([total, *(by_name.get(name, none).double() for name in self._names[1:])])
        self._sums += values
        self._recent.put(step, values)
        fresh_and_bad = (self._first_bad < 0) & ~torch.isfinite(values)
        self._first_bad.masked_fill_(fresh_and_bad, step)
        self._steps += 1

    def spend(self, what: str, seconds: float) -> None:
        """Add host seconds under a name such as `data`."""
        self._seconds[what] = self._seconds.get(what, 0.0) + seconds

    def check(self) -> None:
        """Raise NonFiniteLoss on every rank when a term of any rank was nan or inf; called by all ranks."""
        if not all(map(math.isfinite, ranks.sum_(self._sums.clone()).tolist())):
            self._raise()

    def read(self) -> dict[str, float]:
        """Means since the last read, over all ranks, and this rank's seconds a step; then start anew.

        Raises:
            NonFiniteLoss: names term, step and rank.
        """
        means = (ranks.mean_(self._sums.clone()) / max(1, self._steps)).tolist()
        if not all(map(math.isfinite, means)):
            self._raise()
        metrics = dict(zip(self._keys, means, strict=True))
        metrics |= {f"time/{what}_s": spent / max(1, self._steps) for what, spent in self._seconds.items()}
        self._sums.zero_()
        self._steps = 0
        self._seconds.clear()
        return metrics

    def values_at(self, step: int) -> dict[str, float]:
        """This rank's own loss, terms and figures of one of the last steps; empty where they are gone."""
        found = self._recent.at(step)
        return {} if found is None else dict(zip(self._names, found, strict=True))

    def state(self) -> dict[str, Any]:
        """All ranks' sums for a checkpoint; called by all ranks."""
        mine = {"sums": self._sums.tolist(), "steps": self._steps, "seconds": dict(self._seconds)}
        return {"ranks": ranks.gather_objects(mine)}

    def load(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's sums; at another world size each rank takes an equal share."""
        saved = state["ranks"]
        if len(saved) == ranks.world():
            mine, share = [saved[ranks.rank()]], 1.0
        else:
            mine, share = saved, 1.0 / len(saved)
        sums = torch.tensor([part["sums"] for part in mine], dtype=torch.float64).sum(0) * share
        self._sums.copy_(sums.to(self._sums.device))
        self._first_bad.fill_(-1)
        self._steps = mine[0]["steps"]
        self._seconds = dict(mine[0]["seconds"])

    def _raise(self) -> None:
        found = ranks.gather_objects(self._first_bad.tolist())
        bad = [
            (step, name == "loss", rank, name)  # the sum is to blame only where none of its terms is
            for rank, row in enumerate(found)
            for step, name in zip(row, self._names, strict=True)
            if step >= 0
        ]
        step, _, rank, name = min(bad)
        what = "the loss" if name == "loss" else f"figure {name}" if name in self._figures else f"term {name}"
        raise NonFiniteLoss(
            f"{what} became nan or inf at step {step} on rank {rank}. "
            "Lower train.lr, set train.grad_clip or warmup_epochs, or train with precision fp32; "
            "the last checkpoint is from before it",
            step,
        )


def one(losses: Sequence[Mapping[str, Losses]]) -> dict[str, Losses]:
    """Average the losses of equal micro-batches into those of their step."""
    first = losses[0]
    if len(losses) == 1:
        return dict(first)
    return {
        name: Losses(
            _mean([part[name].total.detach() for part in losses]),
            {term: _mean([part[name].terms[term] for part in losses]) for term in first[name].terms},
            {figure: _mean([part[name].figures[figure] for part in losses]) for figure in first[name].figures},
        )
        for name in first
    }


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)
