"""Batches that losses fail on, and a strategy that runs one loss on them as training does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from kdscale import plugins
from kdscale.api import Batch, Modifier, Outputs, Shapes, Term
from kdscale.strategies.distill import Distill

__all__ = ["HARD", "UNDEFINED", "Hard", "Ran", "Variant", "run", "variants"]

MAPS: Sequence[tuple[int, ...]] = ((4, 6, 6), (8, 3, 3))
WITH_POOLED = (*MAPS, (8,))
LARGE_LOGIT, LARGE_FEATURE = 1e4, 6e4
"""The second is near the largest number of fp16, 65504."""

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of the student's and the teacher's logits or feature, (B, ...) each."""


@dataclass(frozen=True)
class Hard:
    """A batch: the shapes of both sides, and what is done to what is drawn for them."""

    change: Change = lambda s, t: (s, t)
    samples: int = 6
    classes: int = 5
    features: Sequence[tuple[int, ...]] = WITH_POOLED


@dataclass(frozen=True)
class Variant:
    """A plug-in with its default options, or with one of them at another value."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def variants(kind: str) -> list[Variant]:
    """Every plug-in of a kind, with each value of each option that offers a choice."""
    found = []
    for name in plugins.available(kind):
        found.append(Variant(name))
        for key, option in plugins.load(kind, name).Config.model_fields.items():
            if key == "pairs":  # the same in one process
                continue
            others = [value for value in _choices(option.annotation) if value != option.default]
            found += [Variant(name, {key: value}) for value in others]
    return found


def _choices(annotation: Any) -> Sequence[Any]:
    if annotation is bool:
        return (False, True)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return [choice for part in get_args(annotation) for choice in _choices(part) if get_origin(annotation) is not tuple]


def _row_of_zeros(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:1]), x[1:]])


def _dead_channel(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)


def _first_twice(x: Tensor) -> Tensor:
    return torch.cat([x[:1], x[:1], x[2:]])


def _large(x: Tensor) -> Tensor:
    return x.sign() * (LARGE_FEATURE if x.dim() > 2 or x.shape[1] == WITH_POOLED[-1][0] else LARGE_LOGIT)


def _sure(x: Tensor, at: int) -> Tensor:
    """One logit, or channel, far above the others."""
    peak = torch.full_like(x, -LARGE_LOGIT)
    peak[:, at] = LARGE_LOGIT
    return peak


def _each(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda s, t: (change(s), change(t))


HARD: dict[str, Hard] = {
    "ordinary": Hard(),
    "a zero row of the student's": Hard(lambda s, t: (_row_of_zeros(s), t)),
    "a zero row of the teacher's": Hard(lambda s, t: (s, _row_of_zeros(t))),
    "a zero row of both": Hard(_each(_row_of_zeros)),
    "all zero": Hard(_each(torch.zeros_like)),
    "a zero student": Hard(lambda s, t: (torch.zeros_like(s), t)),
    "a zero teacher": Hard(lambda s, t: (s, torch.zeros_like(t))),
    "a sample twice": Hard(_each(_first_twice)),
    "all samples identical": Hard(_each(lambda x: x[:1].expand_as(x).clone())),
    "constant": Hard(_each(lambda x: torch.full_like(x, 0.3))),
    "constant and large": Hard(_each(lambda x: torch.full_like(x, 1234.5))),
    "a constant student": Hard(lambda s, t: (torch.full_like(s, 0.3), t)),
    "dead channels": Hard(_each(_dead_channel)),
    "behind a ReLU": Hard(_each(torch.relu)),
    "the student is the teacher": Hard(lambda s, t: (t.clone(), t)),
    "the student is nearly the teacher": Hard(lambda s, t: (t * (1 + 1e-7), t)),
    "the student is the opposite": Hard(lambda s, t: (-t, t)),
    "large": Hard(_each(_large)),
    "a large student": Hard(lambda s, t: (_large(s), t)),
    "a large teacher": Hard(lambda s, t: (s, _large(t))),
    "sure of different classes": Hard(lambda s, t: (_sure(s, 0), _sure(t, -1))),
    "tiny": Hard(_each(lambda x: 1e-7 * x)),
    "vanishing": Hard(_each(lambda x: 1e-30 * x)),
    "two samples": Hard(samples=2),
    "two identical samples": Hard(_each(lambda x: x[:1].expand_as(x).clone()), samples=2),
    "two classes": Hard(classes=2),
    "one class": Hard(classes=1),
    "one position": Hard(features=((4, 1, 1), (8, 1, 1), (8,))),
    "one channel": Hard(features=((1, 6, 6), (1, 3, 3), (1,))),
    "one channel, one position": Hard(features=((1, 1, 1), (1, 1, 1), (1,))),
    "one row of positions": Hard(features=((4, 1, 6), (8, 1, 3), (8,))),
    "one sample": Hard(samples=1),
    "one sample of maps": Hard(samples=1, features=MAPS),
}
assert WITH_POOLED[-1][0] not in {hard.classes for hard in HARD.values()}, "logits and pooled features must differ"

RELATIONAL = "compares samples with each other, and there is one"
NORMALISED = "one value a channel"
FLAT = "one position"
UNDEFINED: dict[str, dict[str, str]] = {
    "one sample": {
        **dict.fromkeys(["cc", "dist", "pkt", "rkd", "sp"], RELATIONAL),
        **dict.fromkeys(
            ["ab", "adaptation", "fitnet", "ickd", "pad", "reviewkd", "prime_aware", "ft-translator_bn=True"],
            NORMALISED,
        ),
        "projector": "one sample has none",
    },
    "one sample of maps": {
        **dict.fromkeys(["cc", "dist", "pkt", "rkd", "sp"], RELATIONAL),
        **dict.fromkeys(["pad", "prime_aware"], NORMALISED),
        "projector": "one sample has none",
    },
    "one position": {"at": FLAT, "nst": FLAT},
    "one channel, one position": {"at": FLAT, "nst": FLAT},
    "one class": {"dkd": "a single class", "zscore": "no spread"},
}
"""What has no value on which batch, and what the error says; of a plug-in, or of a variant alone."""


@dataclass(frozen=True)
class Ran:
    """What one step of one term came to."""

    value: Tensor
    inputs: list[Tensor | None]
    """Gradients of the student's logits and features, where any arrived."""
    parts: list[Tensor]
    """Gradients of the loss's own parameters."""

    def assert_finite(self) -> None:
        assert self.value.dtype == torch.float32
        assert torch.isfinite(self.value)
        assert all(torch.isfinite(x).all() for x in [*self.inputs, *self.parts] if x is not None)

    def assert_same(self, wide: Ran) -> None:
        """Bit for bit the same as from inputs widened before, but that a gradient arrives in its input's type."""
        assert self.value.dtype == torch.float32
        torch.testing.assert_close(self.value, wide.value, rtol=0, atol=0)
        for mine, theirs in zip([*self.inputs, *self.parts], [*wide.inputs, *wide.parts], strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=0, atol=0)


class _Answers(nn.Module):
    """Stands for a student: answers with leaves that gradients can be asked for."""

    def __init__(self, answer: Outputs) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Outputs:
        return self.answer


def run(loss: Variant, hard: Hard, dtype: torch.dtype, rounded: torch.dtype, *, modifier: Variant | None = None) -> Ran:
    """One step of one term through the usual strategy, as training runs it.

    Args:
        loss: the term's.
        hard: the batch.
        dtype: of what both networks answer; in half precision under an autocast.
        rounded: to what numbers of this type are rounded first.
        modifier: on the term, if any.
    """
    plugin = plugins.load("losses", loss.name)
    shapes = Shapes(hard.classes, hard.features, hard.features, train_rows=50)
    torch.manual_seed(0)
    built = plugin(plugin.Config(**_fewer(plugin, loss.options)), shapes)
    strategy = _strategy(built, _modifiers(modifier, shapes), len(hard.features))
    leaves, student, teacher = _sides(hard, dtype, rounded, pixels=plugin.needs_input_grad)
    strategy.student = _Answers(student)
    batch = Batch(
        torch.zeros(hard.samples, 1, 8, 8, dtype=torch.uint8), torch.arange(hard.samples) % hard.classes,
        torch.arange(hard.samples), view=0,
    )  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        losses = strategy(batch, {"teacher": teacher}, "main")
    losses.total.backward()
    return Ran(losses.total, [x.grad for x in leaves], [p.grad for p in strategy.parameters() if p.grad is not None])


def _fewer(plugin: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Contrast with few rows: more say nothing else."""
    return {"negatives": 20, **options} if "negatives" in plugin.Config.model_fields else options


def _modifiers(modifier: Variant | None, shapes: Shapes) -> list[Modifier]:
    if modifier is None:
        return []
    plugin = plugins.load("modifiers", modifier.name)
    return [plugin(plugin.Config(**modifier.options), shapes)]


def _strategy(loss: Any, modifiers: list[Modifier], taps: int) -> Distill:
    every = tuple(range(taps))
    term = Term("term", loss, lambda step: 1.0, "teacher", modifiers, every, every)
    return Distill(nn.Identity(), {"main": [term]}).train()


def _sides(
    hard: Hard, dtype: torch.dtype, rounded: torch.dtype, *, pixels: bool
) -> tuple[list[Tensor], Outputs, Outputs]:
    rng = torch.Generator().manual_seed(1)
    shapes = [(hard.samples, n) if isinstance(n, int) else (hard.samples, *n) for n in (hard.classes, *hard.features)]
    drawn = [hard.change(*(torch.randn(shape, generator=rng) for _ in range(2))) for shape in shapes]
    student, teacher = ([x.to(rounded).to(dtype) for x in side] for side in zip(*drawn, strict=True))
    leaves = [x.requires_grad_() for x in student]
    return leaves, *(_answer(side, rng, pixels=pixels) for side in (leaves, teacher))


def _answer(side: list[Tensor], rng: torch.Generator, *, pixels: bool) -> Outputs:
    if not pixels:
        return Outputs(side[0], side[1:])
    size, classes = side[0].shape
    image, slopes = torch.rand(size, 1, 64, generator=rng).requires_grad_(), torch.rand(1, classes, 64, generator=rng)
    return Outputs(side[0] + (image * slopes).sum(2).to(side[0].dtype), side[1:], image)
