"""What a teacher might answer, for the tests of the cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Outputs
from kdscale.cache.layout import Layout
from kdscale.cache.records import decode, encode


class Answer(NamedTuple):
    logits: Tensor
    labels: Tensor
    rows: Tensor
    labels_b: Tensor
    lam: Tensor

    @property
    def partners(self) -> dict[str, Tensor]:
        return {"labels_b": self.labels_b, "lam": self.lam}


def answer(seed: int, rows: int, classes: int, scale: float = 3.0, offset: float = 0.0) -> Answer:
    """Normal logits around `offset`, labels and partners anywhere, rows in any order."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=rng) + offset
    labels, labels_b = torch.randint(0, classes, (2, rows), generator=rng)
    order = torch.randperm(10 * rows, generator=rng)[:rows]
    return Answer(logits, labels, order, labels_b, torch.rand(rows, generator=rng))


@st.composite
def answers(draw: st.DrawFn, most_classes: int = 300) -> Answer:
    """A batch of up to nine rows; logits from constant to far apart, around 0 or 10,000."""
    scale, offset = draw(st.sampled_from([(0.0, 0.0), (0.3, 0.0), (3.0, 0.0), (30.0, -5.0), (3.0, 1e4), (7e4, 0.0)]))
    rows, classes = draw(st.integers(1, 9)), draw(st.integers(1, most_classes))
    return answer(draw(st.integers(0, 999)), rows, classes, scale, offset)


def layout(data: st.DataObject, classes: int, *kinds: str) -> Layout:
    """Any layout of that many classes, without features."""
    return Layout(**data.draw(_parameters(classes, kinds or ("dense", "dense_fp32", "topk"))))


@st.composite
def _parameters(draw: st.DrawFn, classes: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    kind, mixing = draw(st.sampled_from(kinds)), draw(st.booleans())
    if kind != "topk":
        return {"classes": classes, "kind": kind, "mixing": mixing}
    residual = draw(st.sampled_from(["uniform", "ghost", "to_target", "sampled", "renorm"]))
    sampled = residual == "sampled"
    return {
        "classes": classes, "kind": kind, "mixing": mixing, "residual": residual,
        "k": draw(st.one_of(st.integers(0 if sampled else 1, min(classes, 12)), st.just(classes))),
        "draws": draw(st.integers(1, 9)) if sampled else 0,
        "temperatures": tuple(sorted([1.0, *draw(st.lists(st.sampled_from([0.5, 1.5, 4.0, 20.0]), unique=True))])),
    }  # fmt: skip


def written(given: Answer, layout: Layout, view: int = 0) -> Tensor:
    partners = {"labels_b": given.labels_b} if layout.mixing else {}
    return encode(given.logits, layout, labels=given.labels, rows=given.rows, view=view, **partners)


def read(records: Tensor, given: Answer, layout: Layout) -> Outputs:
    partners: dict[str, Any] = given.partners if layout.mixing else {}
    return decode(records, layout, labels=given.labels, **partners)


def seen(given: Answer, layout: Layout, temperature: float = 1.0, student: Tensor | None = None) -> Tensor:
    """The distribution (B, C), float64, that a loss at this temperature is taught."""
    student = torch.zeros_like(given.logits) if student is None else student
    outputs = read(written(given, layout), given, layout).at(temperature, student)
    return (outputs.logits.double() / temperature).softmax(1)
