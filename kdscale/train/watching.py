"""One step looked at closely: which module, operation and sample first gave what is not finite.

A module is found by forward hooks. The operation inside it is found by looking at every tensor that is computed: the
last one before the module's answer that made nan or inf of finite inputs, since an inf may be meant, as in a mask.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdscale.api import Losses, Outputs, Taught

__all__ = ["FIRST_OPERATION", "Found", "Range", "Watch", "told"]

_UNWRITTEN = ("empty", "new_empty")
"""Operations whose values are whatever the memory held."""
MOST_OPERATIONS = 10**9
"""In one forward pass: what keeps their numbers apart."""
FIRST_OPERATION = MOST_OPERATIONS + 1
_TORCH = str(Path(torch.__file__).parent)
_NOT_THE_USERS = (_TORCH, __file__, "/jaxtyping/", "/beartype/", "<")


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a tensor, and how many are not finite."""

    shape: tuple[int, ...]
    low: float
    high: float
    bad: int

    @classmethod
    def of(cls, tensor: Tensor) -> Range:
        """Of a tensor's finite values."""
        values = tensor.detach().float()
        finite = values[torch.isfinite(values)]
        low, high = (finite.min().item(), finite.max().item()) if len(finite) else (float("nan"), float("nan"))
        return cls(tuple(tensor.shape), low, high, values.numel() - len(finite))

    def __str__(self) -> str:
        bad = f", {self.bad:,} not finite" if self.bad else ""
        return f"{'x'.join(map(str, self.shape)) or 'one number'} in [{self.low:.4g}, {self.high:.4g}]{bad}"


@dataclass
class Found:
    """Where something first was not finite, on one rank."""

    path: str
    """Module, as the strategy calls it; or a parameter, a teacher, a term."""
    kind: str
    """module, teacher, weight, term or gradient."""
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
class _Made:
    """An operation that made what is not finite of what is."""

    number: int
    operation: str
    place: str
    condition: str
    samples: list[int]


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
    stop: Callable[[FrameType | None], None] | None = None
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

    def weights(self) -> None:
        """Look at the weights that the step begins with."""
        for name, tensor in [*self.strategy.named_parameters(), *self.strategy.named_buffers()]:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self._note(Found(name, "weight", -1, str(Range.of(tensor))))

    @contextmanager
    def forward(self, taught: Taught) -> Iterator[None]:
        """Look at teachers' answers, and at all modules and operations of a forward pass."""
        self.calls += 1
        for name, answer in taught.items():
            self._answer(f"teachers.{name}", answer, "teacher")
        operations = _Operations(self)
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

    def seen(self, path: str, module: nn.Module, inputs: Any, output: Any, made: list[_Made]) -> None:
        """A module has answered."""
        self._order += 1
        if isinstance(output, Outputs):
            self._answer(path, output, "")
        tensors = _floats(output)
        if self.first is not None or all(torch.isfinite(tensor).all() for tensor in tensors):
            return
        found = Found(f"{path} ({type(module).__name__})", "module", self._order, _condition(inputs, self.batch))
        bad = next((s for tensor in tensors if (s := _bad_samples(tensor, self.batch))), [])
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
                self._blame(wrong, _bad_samples(tensor, self.batch))
                self._note(wrong)

    def _note(self, found: Found) -> None:
        self.first = self.first or found


class _Hook:
    """A forward hook on one module; an object, so that a copy of the module takes none of ours along by name."""

    def __init__(self, watch: Watch, operations: _Operations, path: str) -> None:
        self._watch, self._operations, self._path = watch, operations, path

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with self._operations.unseen():
            self._watch.seen(self._path, module, (args, kwargs), output, self._operations.made)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation that makes what is not finite of what is."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[_Made] = []
        self._watch, self._count, self._unseen = watch, 0, False

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Compute something that is no part of the step."""
        self._unseen = True
        try:
            yield
        finally:
            self._unseen = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        if self._unseen or func.overloadpacket.__name__.startswith(_UNWRITTEN):
            return output
        self._look(func, (args, kwargs), output)  # what is computed in here does not come by here
        return output

    def _look(self, func: Any, inputs: Any, output: Any) -> None:
        self._count += 1
        number = self._watch.calls * MOST_OPERATIONS + self._count
        if number == self._watch.stop_at and self._watch.stop is not None:
            self._watch.stop(_frame_of_the_user())
        outputs = _floats(output)
        if all(torch.isfinite(tensor).all() for tensor in outputs):
            return
        given = [tensor for tensor in _floats(inputs) if all(tensor is not own for own in outputs)]
        if not all(torch.isfinite(tensor).all() for tensor in given):
            return
        frame = _frame_of_the_user()
        batch = self._watch.batch
        bad = next((s for tensor in outputs if (s := _bad_samples(tensor, batch))), [])
        condition = f"{func.overloadpacket.__name__} of {' and '.join(str(Range.of(t)) for t in given[:3])}"
        self.made.append(_Made(number, str(func), _place(frame), condition if given else "", bad))


def told(found: Found) -> str:
    """What was found, in a line."""
    what = {"module": found.path, "teacher": f"the answer of {found.path}"}.get(
        found.kind, f"{found.kind} {found.path}"
    )
    return f"{what}{f'   ({found.condition})' if found.condition else ''}"


def _floats(value: Any) -> list[Tensor]:
    """All tensors of real numbers in a value, of whatever kind."""
    if isinstance(value, Outputs):
        value = (value.logits, value.features)
    elif isinstance(value, Losses):
        value = (value.total, value.terms)
    leaves = [leaf for one in tree_leaves(value) for leaf in (_floats(one) if _is_ours(one) else [one])]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _is_ours(value: Any) -> bool:
    return isinstance(value, Outputs | Losses)


def _bad_samples(tensor: Tensor, batch: int) -> list[int]:
    """Which samples of a batch are not finite, where the tensor has a line for each."""
    if not tensor.dim() or len(tensor) != batch:
        return []
    fine = torch.isfinite(tensor.reshape(batch, -1)).all(1)
    return torch.nonzero(~fine).flatten().tolist()


def _condition(inputs: Any, batch: int) -> str:
    """What is odd about a module's inputs, or else their ranges."""
    tensors = _floats(inputs)
    for tensor in tensors:
        if bad := _bad_samples(tensor, batch):
            return f"its input is not finite already, in {len(bad)} of {batch} samples"
        if tensor.dim() > 1 and len(tensor) == batch:
            empty = torch.nonzero(tensor.reshape(batch, -1).abs().amax(1) == 0).flatten().tolist()
            if empty and len(empty) < batch:
                return f"||x|| = 0 in sample {empty[0]} of its input"
    return f"its input: {', '.join(str(Range.of(tensor)) for tensor in tensors[:2])}" if tensors else ""


def _frame_of_the_user() -> FrameType | None:
    """The innermost frame that is neither torch's nor this file's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and any(part in frame.f_code.co_filename for part in _NOT_THE_USERS):
        frame = frame.f_back
    return frame


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    file = Path(frame.f_code.co_filename)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}:{frame.f_lineno}  `{linecache.getline(str(file), frame.f_lineno).strip()}`"
