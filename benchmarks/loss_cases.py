"""What losses are measured on: shapes of features, a loss built for them, and made-up answers of both networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain_losses import PLAIN, Plain
from kdscale import plugins
from kdscale.api import IGNORED, Batch, Loss, Outputs, Shapes
from kdscale.models.resnet_cifar import ResNetCifar
from kdscale.nn.network import Network, NetworkInput

__all__ = ["CASES", "STEP", "Case", "Side", "pair_of", "shapes_of"]

Shape = tuple[int, ...]
STAGES = ("stage1", "stage2", "stage3")
TAPS: Mapping[str, tuple[str, ...]] = {
    "ab": STAGES, "at": STAGES, "nst": STAGES, "vid": STAGES, "fsp": ("stem", *STAGES), "reviewkd": (*STAGES, "pooled"),
    "fitnet": ("stage2",), "adaptation": ("stage3",), "ft": ("stage3",), "ickd": ("stage3",), "sp": ("stage3",),
    "cc": ("pooled",), "crd": ("pooled",), "pad": ("pooled",), "pkt": ("pooled",), "projector": ("pooled",),
    "rkd": ("pooled",),
}  # fmt: skip
"""As configs tap them; the others see logits only."""
OF_PIXELS = {"pixel_ce": "stage3"}
"""Losses of logits for each position, and the map of whose size those are."""
TRAIN_ROWS = 50_000


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison.

    Attributes:
        maps: each tap's shape without B, the student's and the teacher's.
        options: of some losses, where the defaults are beyond this machine.
        pixels: a side, for what differentiates by them.
        depths: of the student's and the teacher's network there.
    """

    batch: int
    classes: int
    maps: Mapping[str, tuple[Shape, Shape]]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pixels: int = 32
    depths: tuple[int, int] = (20, 56)


CIFAR: Mapping[str, tuple[Shape, Shape]] = {
    "stem": ((16, 32, 32), (16, 32, 32)), "stage1": ((16, 32, 32), (16, 32, 32)),
    "stage2": ((32, 16, 16), (32, 16, 16)), "stage3": ((64, 8, 8), (64, 8, 8)), "pooled": ((64,), (64,)),
}  # fmt: skip
LARGE: Mapping[str, tuple[Shape, Shape]] = {
    "stem": ((16, 8, 8), (16, 8, 8)), "stage1": ((16, 8, 8), (64, 8, 8)), "stage2": ((32, 4, 4), (128, 4, 4)),
    "stage3": ((64, 2, 2), (256, 2, 2)), "pooled": ((512,), (2048,)),
}  # fmt: skip
"""Pooled widths of ResNet-18 and -50; their maps at 1,024 images would be 400 MB each, and a regressor between them
minutes on one core: these have a wide teacher's channels on few positions."""
CASES = {
    "B256": Case(256, 100, CIFAR),
    "B1024": Case(1024, 1000, LARGE, {"crd": {"negatives": 2048}, "fsp": {"adapter": True}}, 8, (20, 20)),
}
STEP = Case(128, 100, CIFAR, {"adaptation": {"reconstruction": 0}, "ft": {"reconstruction": 0}})
"""Of the share of a student's step; what reads the teacher's map has learnt in a stage of its own."""


@dataclass(frozen=True)
class Side:
    """One way to compute a loss: `begin` makes the outputs afresh, `run` is what is measured."""

    value: Callable[[Outputs, Outputs], Tensor]
    begin: Callable[[], tuple[Outputs, Outputs]]
    parts: Loss

    def run(self, student: Outputs, teacher: Outputs) -> None:
        """Forward and backward."""
        self.value(student, teacher).backward()

    def clear(self, student: Outputs) -> None:
        """Forget gradients, so that backward always makes new ones."""
        self.parts.zero_grad(set_to_none=True)
        for leaf in (student.logits, *student.features):
            if leaf.is_leaf:
                leaf.grad = None


def shapes_of(name: str, case: Case) -> Shapes:
    """Shapes of a loss's taps."""
    student, teacher = zip(*(case.maps[tap] for tap in TAPS[name]), strict=True) if name in TAPS else ((), ())
    return Shapes(case.classes, list(student), list(teacher), TRAIN_ROWS)


def pair_of(name: str, case: Case, *, half: bool = False) -> tuple[Side, Side]:
    """Ours and the plain form on the same answers, each with its own copy of the trained parts.

    Args:
        name: of the loss.
        case: sizes.
        half: features and logits in bf16 and channels-last, as networks answer in training on a CPU.
    """
    torch.manual_seed(0)
    plugin = plugins.load("losses", name)
    loss: Loss = plugin(plugin.Config(**case.options.get(name, {})), shapes_of(name, case)).train()
    batch = _batch(name, case)
    begin = _networks(batch, case) if name == "at_grad" else _answers(name, case, half=half)
    twin, plain = copy.deepcopy(loss), PLAIN[name]
    return Side(_ours(loss, batch), begin, loss), Side(_plainly(plain, twin, batch), begin, twin)


def _ours(loss: Loss, batch: Batch) -> Callable[[Outputs, Outputs], Tensor]:
    def value(student: Outputs, teacher: Outputs) -> Tensor:
        found: Tensor = loss(student, teacher if loss.needs_teacher else None, batch)
        return found.mean() if found.dim() else found

    return value


def _plainly(plain: Plain, loss: Loss, batch: Batch) -> Callable[[Outputs, Outputs], Tensor]:
    return lambda student, teacher: plain(loss, student, teacher, batch)


def _batch(name: str, case: Case) -> Batch:
    images = torch.randint(0, 256, (case.batch, 3, case.pixels, case.pixels), dtype=torch.uint8)
    labels = torch.randint(0, case.classes, (case.batch, *_positions(name, case)))
    if labels.dim() > 1:
        labels[torch.rand(labels.shape) < 0.1] = IGNORED
    return Batch(images, labels, torch.randperm(TRAIN_ROWS)[: case.batch], view=0)


def _positions(name: str, case: Case) -> Shape:
    """() for a loss of one answer an image, (H, W) for one of each position."""
    return case.maps[OF_PIXELS[name]][0][1:] if name in OF_PIXELS else ()


def _answers(name: str, case: Case, *, half: bool) -> Callable[[], tuple[Outputs, Outputs]]:
    """Features behind a ReLU, logits of a common spread."""
    answer = (case.classes, *_positions(name, case))

    def leaf(shape: Shape, *, trained: bool) -> Tensor:
        drawn = torch.randn(case.batch, *shape)
        drawn = 3 * drawn if shape == answer else drawn.relu() if len(shape) == 3 else drawn.abs()
        laid = drawn.contiguous(memory_format=torch.channels_last) if half and drawn.dim() == 4 else drawn
        return laid.to(torch.bfloat16 if half else torch.float32).requires_grad_(trained)

    taps = [case.maps[tap] for tap in TAPS.get(name, ())]
    logits = [leaf(answer, trained=trained) for trained in (True, False)]
    student = Outputs(logits[0], [leaf(own, trained=True) for own, _ in taps])
    teacher = Outputs(logits[1], [leaf(theirs, trained=False) for _, theirs in taps])
    return lambda: (student, teacher)


def _networks(batch: Batch, case: Case) -> Callable[[], tuple[Outputs, Outputs]]:
    """Answers of real networks, for a loss that differentiates through them."""
    mean, std = [0.5] * 3, [0.3] * 3
    found = []
    for depth in case.depths:
        entry = NetworkInput(given=3, given_size=case.pixels, channels=3, size=case.pixels, mean=mean, std=std)
        model = ResNetCifar(classes=case.classes, depth=depth)
        network = Network(model, entry).prepare(True, "cpu").train(depth == case.depths[0])
        network.input_grad = True
        found.append(network)
    found[1].requires_grad_(False)
    return lambda: (found[0](batch.images), found[1](batch.images))
