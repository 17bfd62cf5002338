"""Small networks, batches and teachers, in float64 where numbers are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes, Strategy, Term
from kdscale.losses.ce import CrossEntropy
from kdscale.losses.kd import SoftTargets
from kdscale.strategies.distill import Distill

CLASSES = 3
SHAPES = Shapes(classes=CLASSES)


class Linear(nn.Module):
    """Samples do not meet in it, so that micro-batches can equal a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(self.head(images.flatten(1).to(self.head.weight.dtype) / 255))


class Convolutional(nn.Module):
    """With buffers, and weights whose memory layout matters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Outputs:
        x = self.norm(self.conv(images.to(self.conv.weight.dtype) / 255)).relu()
        return Outputs(self.head(x.mean((2, 3))))


def batch(step: int = 0, count: int = 8, size: int = 4) -> Batch:
    """Noise that depends on the step."""
    rng = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    return Batch(images, labels, torch.arange(count), view=0, step=step)


def strategy(student: nn.Module, passes: int = 1, weight: float = 1.0) -> Strategy:
    """Cross-entropy alone, in one pass or several."""
    loss = CrossEntropy(CrossEntropy.Config(), SHAPES)
    return Distill(student, {f"pass{n}": [Term(f"ce{n}", loss, lambda step: weight)] for n in range(passes)})


def distillation(student: nn.Module) -> Strategy:
    """Cross-entropy and soft targets of the teacher `big`."""
    hard = Term("ce", CrossEntropy(CrossEntropy.Config(), SHAPES), lambda step: 0.5)
    soft = Term("kd", SoftTargets(SoftTargets.Config(), SHAPES), lambda step: 0.5, teacher="big")
    return Distill(student, {"main": [hard, soft]})


class Oracle:
    """A teacher whose answers are looked up by row."""

    provides = frozenset({"logits"})

    def __init__(self, name: str, logits: Tensor) -> None:
        self.name, self.logits, self.asked = name, logits, 0

    def __call__(self, asked: Batch) -> Outputs:
        self.asked += 1
        return Outputs(self.logits[asked.rows])

    def fingerprint(self) -> str:
        return self.name
