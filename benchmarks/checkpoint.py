"""How long a checkpoint stops training, against the disk's own time for as many bytes.

The bare side writes one file of the same size into the same folder, in pieces, and flushes it to the disk: bytes over
the disk's bandwidth at that moment. Both sides take turns.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.figures import Row, row
from kdscale import checkpoint
from kdscale.api import Batch, Outputs, Shapes, Term
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.losses.ce import CrossEntropy
from kdscale.models.vgg import Vgg
from kdscale.strategies.distill import Distill

GOAL = 1.5
CLASSES, SIDE, PIECE = 100, 32, 1 << 22


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both sides, in turns."""
    engine = _trained()
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    first = _save(engine, folder / "checkpoints", 0)[1]
    content = b"".join(path.read_bytes() for path in sorted(first.iterdir()))
    for step in range(1, rounds + 1):
        for name in ("ours", "bare") if step % 2 else ("bare", "ours"):
            if name == "ours":
                seconds[name].append(_save(engine, folder / "checkpoints", step)[0])
            else:
                seconds[name].append(_write(folder / "bare", content))
    return {
        "ratios": [ours / bare for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)],
        "seconds": seconds, "bytes": len(content),
        "disk_bytes_per_s": len(content) / statistics.median(seconds["bare"]),
    }  # fmt: skip


def rows_of(measured: dict[str, Any]) -> list[Row]:
    """The target's row."""
    return [row("checkpoint: stops training, to the disk", measured["ratios"], "x", "<=", GOAL)]


class Student(nn.Module):
    """VGG-19: twenty million parameters, and as many numbers of momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Vgg(depth=19, classes=CLASSES)

    def forward(self, images: Tensor) -> Outputs:
        """Logits."""
        return Outputs(self.net(images))


def _trained() -> DdpEngine:
    """An engine after one update: with momentum, as every checkpoint but the first has it."""
    torch.manual_seed(0)
    loss = CrossEntropy(CrossEntropy.Config(), Shapes(classes=CLASSES))
    strategy = Distill(Student(), {"main": [Term("ce", loss, lambda step: 1.0)]})
    train = TrainConfig.model_validate({"epochs": 1, "batch_size": 2, "lr": 0.01, "precision": "fp32"})
    engine = DdpEngine(strategy, train, steps_per_epoch=1)
    images = torch.zeros(2, 3, SIDE, SIDE)
    with engine.micro(0):
        engine.update(engine.forward(Batch(images, torch.arange(2), torch.arange(2), view=0, step=0), {}, "main").total)
    engine.end_step(0)
    return engine


def _save(engine: DdpEngine, folder: Path, step: int) -> tuple[float, Path]:
    begun = time.perf_counter()
    path = checkpoint.save(folder, {"step": step, "digest": "0"}, engine.save, keep=2, is_mine=lambda: True)
    spent = time.perf_counter() - begun
    checkpoint.settle()  # training has gone on meanwhile
    return spent, path


def _write(target: Path, content: bytes) -> float:
    begun = time.perf_counter()
    with target.open("wb") as file:
        for start in range(0, len(content), PIECE):
            file.write(content[start : start + PIECE])
        file.flush()
        os.fsync(file.fileno())
    spent = time.perf_counter() - begun
    target.unlink()
    return spent
