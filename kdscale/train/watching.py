"""One step looked at closely: which module, operation and sample first gave what is not finite.

A module is found by forward hooks. The operation inside it is found by looking at every tensor that is computed: the
last one before the module's answer that made nan or inf of finite inputs, since an inf may be meant, as in a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdscale.api import Losses, Outputs, Taught
from kdscale.train.operations import Made, Operations, Stop
from kdscale.train.ranges import Range, all_finite, bad_samples, condition, floats_in

__all__ = ["Found", "Watch", "told"]


@dataclass
class Found:
    """Where something first was not finite, on one rank."""

    path: str
    """Module, as the strategy calls it; or a parameter, a teacher, a term."""
    kind: str
    """weight, teacher, module, term, gradient or update."""
    order: int
    """Of all that the rank computed, to say which rank's was first."""
    condition: str = ""
    """What went in."""
    operation: str = ""
    place: str = ""
    """File, line and text of what called the operation."""
    number: int = -1
    """Of the operation in this step, to stop at it when the step runs again."""
    sample: int | None = None
    """Of the rank's batch; None where all of them are, or none can be told."""
    samples: int = 0
    """How many of the batch."""


@dataclass
class Watch:
    """What is learnt of one step on one rank.

    Args:
        strategy: whose modules are looked at.
        batch: samples of a micro-batch.
        stop_at: number of the operation behind which `stop` is called, with the frame that asked for it.
    """

    strategy: nn.Module
    batch: int
    stop_at: int = -1
    stop: Stop | None = None
    first: Found | None = None
    terms: dict[str, float] = field(default_factory=dict)
    """Mean over micro-batches."""
    loss: float = 0.0
    taps: dict[str, list[str]] = field(default_factory=dict)
    """Ranges of what teachers and student answered, by name, one a micro-batch."""
    gradient_norm: float | None = None
    """Over all parameters, after it was averaged over ranks."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Where they are wanted."""
    keep_gradients: bool = False
    micro: int = 0
    """Which micro-batch is looked at."""
    calls: int = 0
    """Forward passes so far."""
    _order: int = 0

    def weights(self, *, after: bool = False) -> None:
        """Look at the weights that the step begins with, or at those that its update left."""
        for name, tensor in [*self.strategy.named_parameters(), *self.strategy.named_buffers()]:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                kind, order = ("update", self._order) if after else ("weight", -1)
                self._note(Found(name, kind, order, str(Range.of(tensor))))

    @contextmanager
    def forward(self, taught: Taught) -> Iterator[None]:
        """Look at teachers' answers, and at all modules and operations of a forward pass."""
        self.calls += 1
        for name, answer in taught.items():
            self._answer(f"teachers.{name}", answer, "teacher")
        operations = Operations(self.calls, self.batch, self.stop_at, self.stop)
        handles = [
            module.register_forward_hook(_Hook(self, operations, path or "strategy"), with_kwargs=True)
            for path, module in self.strategy.named_modules()
        ]
        try:
            with operations:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def losses(self, pass_: str, losses: Losses, share: float) -> None:
        """Take in a pass's terms; `share` is a micro-batch's part of the step."""
        for name, value in losses.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + share * value.item()
            if not torch.isfinite(value):
                self._note(Found(name, "term", self._order))
        self.loss += share * losses.total.item()
        if not torch.isfinite(losses.total):
            self._note(Found(f"the sum of pass {pass_}", "term", self._order))

    def step(self, losses: Mapping[str, Losses]) -> None:
        """Take the step's losses as the metrics have them, averaged over micro-batches in their own precision."""
        self.terms = {name: value.item() for part in losses.values() for name, value in part.terms.items()}
        self.loss = sum(part.total.double().item() for part in losses.values())

    def gradient(self, named: Mapping[str, Tensor]) -> None:
        """Take in the reduced gradients, by parameter."""
        if not named:
            return
        norms = torch.stack([value.float().norm() for value in named.values()])
        for name, norm in reversed([*zip(named, norms.tolist(), strict=True)]):  # as they are computed
            if norm != norm or norm == float("inf"):
                self._note(Found(name, "gradient", self._order, str(Range.of(named[name]))))
        self.gradient_norm = norms.norm().item()
        if self.keep_gradients:
            self.gradients |= {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "terms": self.terms, "loss": self.loss, "taps": self.taps, "gradient_norm": self.gradient_norm,
            "first": asdict(self.first) if self.first else None,
        }  # fmt: skip

    # ------------------------------------------------------------------ what hooks say

    def seen(self, path: str, module: nn.Module, inputs: Any, output: Any, made: list[Made]) -> None:
        """A module has answered."""
        self._order += 1
        if isinstance(output, Outputs):
            self._answer(path, output, "")
        tensors = floats_in(output)
        if self.first is not None or all_finite(tensors):
            return
        found = Found(f"{path} ({type(module).__name__})", "module", self._order, condition(inputs, self.batch))
        bad = next((s for tensor in tensors if (s := bad_samples(tensor, self.batch))), [])
        if made:
            last = made[-1]
            found.operation, found.place, found.number = last.operation, last.place, last.number
            found.condition, bad = f"{found.condition}; {last.condition}".strip("; "), last.samples or bad
        self._blame(found, bad)
        self._note(found)

    def _blame(self, found: Found, bad: Sequence[int]) -> None:
        found.samples = len(bad)
        if bad and len(bad) < self.batch:
            found.sample = self.micro * self.batch + bad[0]

    def _answer(self, path: str, answer: Outputs, kind: str) -> None:
        for name, tensor in (("logits", answer.logits), *((f"taps.{i}", f) for i, f in enumerate(answer.features))):
            found = Range.of(tensor)
            self.taps.setdefault(f"{path}.{name}", []).append(str(found))
            if found.bad and kind:
                wrong = Found(path, kind, self._order, f"{name}: {found}")
                self._blame(wrong, bad_samples(tensor, self.batch))
                self._note(wrong)

    def _note(self, found: Found) -> None:
        self.first = self.first or found


class _Hook:
    """A forward hook on one module; an object, so that a copy of the module takes none of ours along by name."""

    def __init__(self, watch: Watch, operations: Operations, path: str) -> None:
        self._watch, self._operations, self._path = watch, operations, path

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with self._operations.unseen():
            self._watch.seen(self._path, module, (args, kwargs), output, self._operations.made)


def told(found: Found) -> str:
    """What was found, in a line."""
    what = {"module": found.path, "teacher": f"the answer of {found.path}"}.get(
        found.kind, f"{found.kind} {found.path}"
    )
    return f"{what}{f'   ({found.condition})' if found.condition else ''}"
