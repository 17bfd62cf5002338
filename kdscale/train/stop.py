"""Asking a stage to stop, or to measure its steps, and all its ranks agreeing on the step at which it does."""

from __future__ import annotations

import time

import torch

from kdscale import ranks

__all__ = ["AGREE_EVERY_STEPS", "Interrupted", "Stop", "StopAfter"]

AGREE_EVERY_STEPS = 4
"""Ranks compare notes this often: a tiny all-reduce on the host, far below a step's own time."""

_PROFILE, _STOP = 1, 2
"""What a rank may want; all do what the most of them is."""


class Interrupted(Exception):
    """A stage left, because it was asked to, with all that it needs to go on saved."""


class Stop:
    """A flag that a signal handler raises and the training loop polls at step boundaries.

    A handler does nothing but raise it: no file is written and no collective runs inside a signal. Since it is polled
    wherever a stage gets further, it also knows when that was last.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.moved_at = time.monotonic()
        """When this rank was last at a boundary, by the monotonic clock."""
        self.boundaries = 0
        """How many it has passed."""
        self.step = 0
        """Training step, or row of a conversion, that it was at then."""
        self.profile_asked = False
        """Whether this rank wants the coming steps to be measured."""
        self.profile_agreed = False
        """Whether all ranks know that one does."""
        self._asked = False

    def ask(self, reason: str) -> None:
        """Ask for a stop at the next boundary on which the ranks agree."""
        self.reason = self.reason or reason
        self._asked = True

    @property
    def asked(self) -> bool:
        """Whether this rank was asked; the others may not know yet."""
        return self._asked

    def agreed(self, step: int) -> bool:
        """Whether all ranks stop after `step`; called by all ranks at the same steps."""
        self.move()
        wish = _STOP if self._asked else _PROFILE if self.profile_asked else 0
        if ranks.world() > 1:
            if step % AGREE_EVERY_STEPS:
                return False
            wish = int(ranks.max_(torch.tensor(wish)).item())
        self.profile_agreed = wish == _PROFILE
        return wish == _STOP

    def move(self) -> None:
        """Say that this rank got further, where that takes long without a boundary."""
        self.moved_at, self.boundaries = time.monotonic(), self.boundaries + 1


class StopAfter(Stop):
    """Stops by itself after a number of steps of this attempt: for smoke runs."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def agreed(self, step: int) -> bool:
        """Count the step; every rank counts the same."""
        self._left -= 1
        if self._left <= 0:
            self.reason = "the smoke run stops here, to be resumed"
        return self._left <= 0 or super().agreed(step)
