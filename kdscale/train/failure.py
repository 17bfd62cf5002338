"""What is left behind where a loss was not finite: the batch, the terms, what the student answered, the gradient.

A stage may run on for some steps before it knows. So the last steps' figures stay on the device, where each costs a
copy of a few numbers, and are read only if one of them was bad.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kdscale import ranks
from kdscale.api import Outputs
from kdscale.engines.torch_engine import TorchEngine
from kdscale.errors import NonFiniteLoss
from kdscale.pipeline.artifacts import StageFolder
from kdscale.pipeline.failures import write_failure
from kdscale.train.build import Parts
from kdscale.train.metrics import Meter, Ring

__all__ = ["Recent", "leave_record", "meter_of", "recent_of"]

MOST_REMEMBERED = 1000
"""Steps whose figures are kept on the device."""
log = logging.getLogger(__name__)


@runtime_checkable
class Order(Protocol):
    """Which rows a rank's batches hold, as its loader knows it."""

    steps_per_epoch: int

    def view_of(self, epoch: int) -> int: ...

    def rows(self, epoch: int, start: int = 0) -> list[Any]: ...


class Recent:
    """Smallest and largest values of what the student answered in the last steps, and gradient norms where known.

    Args:
        student: whose logits and taps these are; None where it is not to be listened to.
        steps: how many are remembered.
        norm: of the last step's gradient, on its device; None where nobody measured it.
    """

    def __init__(self, student: nn.Module | None, steps: int, norm: Callable[[], Tensor | None]) -> None:
        self._norm = norm
        self._ranges, self._norms = Ring(steps), Ring(steps)
        self._now: list[Tensor] = []
        self._names: Sequence[str] = ()
        if student is not None:
            student.register_forward_hook(self._answered)

    @torch.no_grad()
    def _answered(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        if not module.training or not isinstance(output, Outputs):
            return
        taps = [f"tap {tap}" for tap in getattr(module, "taps", ())]
        self._names = ("logits", *taps[: len(output.features)])
        answers = (output.logits, *output.features)
        # not aminmax, which copies what is channels last: 13 times as slow on a CPU
        lows, highs = [tensor.amin().float() for tensor in answers], [tensor.amax().float() for tensor in answers]
        if self._now:  # of an earlier part of the step
            count = len(answers)
            lows = [torch.minimum(one, other) for one, other in zip(lows, self._now[:count], strict=True)]
            highs = [torch.maximum(one, other) for one, other in zip(highs, self._now[count:], strict=True)]
        self._now = [*lows, *highs]

    def note(self, step: int) -> None:
        """Keep what was seen since the last call as a step's."""
        if self._now:
            self._ranges.put(step, torch.stack(self._now))
            self._now = []
        norm = self._norm()
        if norm is not None:
            self._norms.put(step, norm.detach().reshape(1))

    def ranges(self, step: int) -> dict[str, list[float]]:
        """(smallest, largest) by name; empty where they are not known."""
        found = self._ranges.at(step)
        if found is None:
            return {}
        count = len(self._names)
        return {name: [found[at], found[count + at]] for at, name in enumerate(self._names)}

    def gradient_norm(self, step: int) -> float | None:
        """None where it is not known."""
        found = self._norms.at(step)
        return None if found is None else found[0]


def meter_of(parts: Parts) -> Meter:
    """What adds up a stage's losses, and remembers them for as many steps as may pass before a bad one is known."""
    terms = [term.id for term in parts.spec.terms]
    return Meter(terms, parts.device, parts.assembled.strategy.figures, remembers=_remembered(parts))


def recent_of(parts: Parts) -> Recent:
    """What is kept of a stage's last steps; a compiled student is not listened to, since that would change its code."""
    train, strategy = parts.spec.train, parts.assembled.strategy
    engine = parts.engine
    norm = (lambda: engine.gradient_norm) if isinstance(engine, TorchEngine) else lambda: None
    return Recent(None if train.compile else strategy.student, _remembered(parts), norm)


def leave_record(folder: StageFolder, error: NonFiniteLoss, order: Order, meter: Meter, recent: Recent) -> None:
    """Write down what this rank knows of the step that an error names; never fails for the disk's sake."""
    if error.step is None:
        return
    step, rank = error.step, ranks.rank()
    epoch, index = divmod(step, order.steps_per_epoch)
    document = {
        "schema": 1, "step": step, "rank": rank, "world": ranks.world(), "message": str(error),
        "epoch": epoch, "view": order.view_of(epoch), "rows": order.rows(epoch, index)[0].tolist(),
        "terms": meter.values_at(step), "ranges": recent.ranges(step), "gradient_norm": recent.gradient_norm(step),
    }  # fmt: skip
    try:
        write_failure(folder.logs, document)
    except OSError as problem:
        log.warning("what rank %d had at step %d cannot be written: %s", rank, step, problem)


def _remembered(parts: Parts) -> int:
    return min(parts.spec.train.log_every_steps, MOST_REMEMBERED)
