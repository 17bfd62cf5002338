from __future__ import annotations

from types import FrameType

import pytest
import torch
from torch import Tensor, nn

from kdscale.api import Losses, Outputs
from kdscale.train.operations import FIRST_OPERATION
from kdscale.train.watching import Watch

INF = float("inf")


class Masked(nn.Module):
    """An inf that is meant: what it hides is gone after the softmax."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.masked_fill(torch.arange(x.shape[1]) == 0, -INF)
        return hidden.softmax(1)


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Masked(), nn.Identity())
        self.unit = Unit()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum() + self.unit(x).sum()


def looked_at(module: nn.Module, x: Tensor, **options: object) -> Watch:
    watch = Watch(module, len(x), **options)  # type: ignore[arg-type]
    with watch.forward({}):
        module(x)
    return watch


def test_a_healthy_step_has_nothing_to_blame() -> None:
    watch = looked_at(Nested(), torch.ones(4, 3))
    watch.weights()
    watch.losses("main", Losses(torch.tensor(2.0), {"ce": torch.tensor(1.0)}), 0.5)
    watch.gradient({"w": torch.tensor([3.0, 4.0])})
    assert watch.first is None
    assert (watch.terms, watch.loss, watch.gradient_norm) == ({"ce": 0.5}, 1.0, 5.0)


def test_module_operation_line_and_sample_are_named_and_a_mask_is_not_to_blame() -> None:
    x = torch.ones(4, 3)
    x[2] = 0
    first = looked_at(Nested(), x).first
    assert first is not None
    assert first.path == "unit (Unit)"
    assert first.operation == "aten.div.Tensor"
    assert first.place.endswith("`return x / x.norm(dim=1, keepdim=True)`")
    assert (first.sample, first.samples) == (2, 1)
    assert "||x|| = 0 in sample 2" in first.condition


def test_it_stops_behind_the_operation_with_the_frame_that_asked_for_it() -> None:
    x = torch.ones(4, 3)
    x[1] = 0
    module = Nested()
    first = looked_at(module, x).first
    assert first is not None
    stopped: list[FrameType | None] = []
    looked_at(module, x, stop_at=first.number, stop=stopped.append)
    looked_at(module, torch.ones(4, 3), stop_at=FIRST_OPERATION, stop=stopped.append)
    names = [(frame.f_code.co_name, type(frame.f_locals["self"])) for frame in stopped if frame is not None]
    assert names == [("forward", Unit), ("forward", Masked)]


@pytest.mark.parametrize("kind", ["weight", "teacher", "term", "gradient", "update"])
def test_what_is_no_module_is_named_too(kind: str) -> None:
    module, bad = nn.Linear(2, 2), torch.tensor([INF, 1.0])
    watch = Watch(module, 2)
    if kind in ("weight", "update"):
        with torch.no_grad():
            module.bias.copy_(bad)
        watch.weights(after=kind == "update")
    elif kind == "teacher":
        with watch.forward({"ta": Outputs(torch.stack([torch.ones(2), bad]))}):
            pass
    elif kind == "term":
        watch.losses("main", Losses(bad[0], {"kd": bad[0]}), 1.0)
    else:
        watch.gradient({"weight": bad, "bias": bad})
    assert watch.first is not None
    assert watch.first.kind == kind
    assert watch.first.path == {"teacher": "teachers.ta", "term": "kd"}.get(kind, "bias")
    assert watch.first.sample == (1 if kind == "teacher" else None)
