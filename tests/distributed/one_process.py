"""Terms over several ranks against one process that holds the whole batch, in float64, behind DDP as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdscale import plugins, ranks
from kdscale.api import Batch, Loss, Modifier, Outputs, Shapes, Strategy, Term
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.losses.ce import CrossEntropy
from kdscale.nn.sync_bn import to_sync_bn
from kdscale.strategies.distill import Distill

__all__ = ["Case", "compare", "compare_local"]

CLASSES, COUNT, STEPS = 5, 16, 2
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Case(NamedTuple):
    """A term: a loss with options, and modifiers with theirs."""

    name: str
    options: dict[str, Any] = {}  # noqa: RUF012
    modifiers: Sequence[tuple[str, dict[str, Any]]] = ()


class Network(nn.Module):
    """Two maps and a pooled feature, with BatchNorm or without."""

    def __init__(self, widths: tuple[int, int], *, norm: bool) -> None:
        super().__init__()
        first, second = widths
        self.first = nn.Sequential(nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first) if norm else nn.Identity())
        self.second = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.head = nn.Linear(second, CLASSES)

    def forward(self, images: Tensor) -> Outputs:
        pixels = (images.double() / 255).requires_grad_()
        first = self.first(pixels).tanh()
        second = self.second(first)
        pooled = second.mean((2, 3))
        return Outputs(self.head(pooled), [first, second, pooled], pixels)


def seeded(seed: int, widths: tuple[int, int], *, norm: bool) -> Network:
    torch.manual_seed(seed)
    return Network(widths, norm=norm).double()


def batch(step: int) -> Batch:
    """The global batch of a step: some of its rows come again in the next."""
    rng = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (COUNT, 1, 6, 6), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, CLASSES, (COUNT,), generator=rng)
    return Batch(images, labels, 4 * step + torch.arange(COUNT), view=0, step=step)


def made(case: Case, *, norm: bool) -> Strategy:
    """The task and the term, which sees both maps and the pooled feature; what gets no gradient is frozen."""
    student, teacher = seeded(0, (4, 8), norm=norm), seeded(1, (6, 10), norm=False)
    shapes = Shapes(
        CLASSES, *([tuple(f.shape[1:]) for f in n(batch(0).images).features] for n in (student, teacher)), train_rows=40
    )
    torch.manual_seed(2)
    loss: Loss = _plugin("losses", case.name, case.options, shapes)
    modifiers: list[Modifier] = [_plugin("modifiers", name, options, shapes) for name, options in case.modifiers]
    task = Term("task", CrossEntropy(CrossEntropy.Config(), shapes), lambda step: 0.5)
    term = Term("term", loss, lambda step: 2.0, "t", modifiers, (0, 1, 2), (0, 1, 2))
    return Distill(student, {"main": [task, term]}).double()


def _plugin(kind: str, name: str, options: dict[str, Any], shapes: Shapes) -> Any:
    plugin = plugins.load(kind, name)
    return plugin(plugin.Config(**options), shapes)


def silent(case: Case, *, norm: bool) -> set[str]:
    """Parameters without a gradient, which training freezes."""
    strategy = made(case, norm=norm)
    strategy(batch(0), {"t": seeded(1, (6, 10), norm=False)(batch(0).images)}, "main").total.backward()
    return {name for name, parameter in strategy.named_parameters() if parameter.grad is None}


def found(case: Case, at: slice, *, norm: bool) -> dict[str, Tensor]:
    """Both terms' values and all gradients of each step, as DDP reduces them, and the buffers after the last."""
    teacher, strategy, frozen = seeded(1, (6, 10), norm=False), made(case, norm=norm), silent(case, norm=norm)
    for name, parameter in strategy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    to_sync_bn(strategy)
    config = TrainConfig(epochs=1, batch_size=COUNT, precision="fp32")
    engine, results = DdpEngine(strategy, config, steps_per_epoch=STEPS), {}
    for step in range(STEPS):
        mine = batch(step)._each(lambda t: t[at])
        losses = engine.forward(mine, {"t": teacher(mine.images)}, "main")
        losses.total.backward()
        results |= {f"{step} value {name}": ranks.mean_(value.clone()) for name, value in losses.terms.items()}
        results |= {
            f"{step} gradient {n}": p.grad.clone() for n, p in strategy.named_parameters() if p.grad is not None
        }
        strategy.zero_grad()
    return results | {f"buffer {name}": buffer.clone() for name, buffer in strategy.named_buffers()}


def compare(cases: Sequence[Case]) -> None:
    """Every rank finds what one process does, with synchronised BatchNorm in student, losses and modifiers."""
    whole = [found(case, slice(None), norm=True) for case in cases]  # nobody has joined yet: a world of one
    ranks.join("gloo", timeout_s=60)
    for case, expected in zip(cases, whole, strict=True):
        got = found(case, _mine(ranks.rank()), norm=True)
        assert got.keys() == expected.keys(), (case, got.keys() ^ expected.keys())
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, **CLOSE, msg=lambda said, at=(case, name): f"{at}: {said}")
    ranks.leave()


def compare_local(cases: Sequence[Case], world: int) -> None:
    """With `pairs: local` every rank compares its own samples: the mean of what single processes of a share find."""
    local = [case._replace(options={**case.options, "pairs": "local"}) for case in cases]
    whole = [found(case, slice(None), norm=False) for case in cases]
    shares = [[found(case, slice(COUNT // world * r, COUNT // world * (r + 1)), norm=False) for r in range(world)]
              for case in local]  # fmt: skip
    ranks.join("gloo", timeout_s=60)
    for case, together, apart in zip(local, whole, shares, strict=True):
        got = found(case, _mine(ranks.rank()), norm=False)
        for name, value in got.items():
            mean = torch.stack([share[name] for share in apart]).mean(0)
            torch.testing.assert_close(value, mean, **CLOSE, msg=lambda said, at=(case, name): f"{at}: {said}")
        name = "0 gradient student.second.weight"
        assert not torch.allclose(got[name], together[name], rtol=1e-3, atol=0), (case, "nothing is compared")
    ranks.leave()


def _mine(rank: int) -> slice:
    share = COUNT // ranks.world()
    return slice(share * rank, share * (rank + 1))
