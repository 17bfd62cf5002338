"""What a stage will cost, known before it runs: steps, FLOPs, bytes, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.nn.modes import evaluating

__all__ = ["Cost", "conversion_cost", "fill_cost", "forward_flops", "training_cost", "training_rows"]

FLOAT_BYTES = 4
CHECKPOINT_FILES = 5
SNAPSHOT_FILES = 2
STAGE_FILES = 16


@dataclass(frozen=True)
class Cost:
    """Planned cost of one stage; FLOPs count a multiply-add as two."""

    steps: int = 0
    epochs: int = 0
    images: int = 0
    """That a student sees in training; of a fill, that its teacher is asked for, padding of blocks included."""
    params: int = 0
    flops: int = 0
    """Forward, one image, of the student."""
    teacher_flops: int = 0
    """Forward, one image, of all teachers together that are asked in training."""
    train_flops: int = 0
    """Whole stage: three forwards' worth a student image and pass (forward, two in backward), one a teacher image."""
    saved_flops: int = 0
    """Of teachers that a cache answers for, which a live one would have taken on top."""
    forwards: int = 0
    """Images that are run through a network, evaluation aside: the student's in each pass, and each live teacher's."""
    backwards: int = 0
    """Images whose gradient is taken: the student's in each pass."""
    saved_forwards: int = 0
    """Those of teachers that a cache answers for."""
    bytes: int = 0
    """On disk, at the largest."""
    inodes: int = 0

    def document(self) -> dict[str, int]:
        """As it is written to plan.json."""
        return asdict(self)


def forward_flops(network: nn.Module, info: DatasetInfo, size: int) -> int:
    """FLOPs of one image's forward pass, counted by torch on the real network."""
    images = torch.zeros(1, info.channels, size, size, dtype=torch.uint8)
    counter = _CountFlops()
    with torch.no_grad(), evaluating(network), counter:
        network(images)
    return counter.total


class _CountFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's own formulas (those of FlopCounterMode) over all operations.

    FlopCounterMode itself also tracks modules, for which it imports the whole compiler: 1.4 s of a start.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: true hides a mode from the compiler, and imports the compiler for that."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


def training_rows(spec: StageSpec, info: DatasetInfo) -> int:
    """Rows that are trained on: after the validation split, what a transfer set leaves to others, and the limit."""
    data = spec.data
    left = max(0, info.train_rows - round(info.train_rows * data.val_fraction) - (data.transfer or 0))
    return min(left, data.limit or left)


def training_cost(
    spec: StageSpec, info: DatasetInfo, params: int, flops: tuple[int, int], teacher_flops: Mapping[str, int], kept: int
) -> Cost:  # fmt: skip
    """Cost of a training stage.

    Args:
        spec: the resolved stage.
        info: its data.
        params: of the student.
        flops: forward, one image, of the student, and of it with what trains beside it.
        teacher_flops: forward of each teacher that is asked in training, one image.
        kept: snapshots that will be kept.
    """
    train, passes = spec.train, max(1, len(spec.passes))
    asked = [count for role, count in teacher_flops.items() if spec.teachers[role].cache is None]
    live, cached = sum(asked), sum(teacher_flops.values()) - sum(asked)
    steps = train.epochs * (training_rows(spec, info) // train.batch_size)
    images = steps * train.batch_size
    held = 1 + (1 if train.optimizer == "sgd" else 2) + (1 if train.ema else 0)
    checkpoints = (train.keep_checkpoints + 1) * held * params * FLOAT_BYTES if train.epochs else 0
    return Cost(
        steps=steps,
        epochs=train.epochs,
        images=images,
        params=params,
        flops=flops[0],
        teacher_flops=live + cached,
        train_flops=images * (3 * flops[1] * passes + live),
        saved_flops=images * cached,
        forwards=images * (passes + len(asked)),
        backwards=images * passes,
        saved_forwards=images * (len(teacher_flops) - len(asked)),
        bytes=checkpoints + kept * params * FLOAT_BYTES,
        inodes=STAGE_FILES + kept * SNAPSHOT_FILES + (train.keep_checkpoints + 1) * CHECKPOINT_FILES,
    )


def fill_cost(rows: int, views: int, block_rows: int, record_bytes: int, teacher_flops: int, parts: int) -> Cost:
    """Cost of filling one of the equal parts of a teacher's cache; its steps are blocks.

    Args:
        rows: of a view.
        views: of each row.
        block_rows: records computed at once.
        record_bytes: of one record.
        teacher_flops: forward of the teacher, one image.
        parts: how many stages share the work.
    """
    blocks = -(-rows // block_rows) * views
    return Cost(
        steps=-(-blocks // parts),
        images=blocks * block_rows // parts,
        forwards=blocks * block_rows // parts,
        flops=teacher_flops,
        train_flops=blocks * block_rows * teacher_flops // parts,
        bytes=(blocks * (block_rows * record_bytes + 16) + 8 * rows) // parts,
        inodes=STAGE_FILES + 4,
    )


def conversion_cost(definition: dict[str, Any], info: DatasetInfo) -> Cost:
    """Cost of converting a data set (raw pixels; JPEG is smaller)."""
    side = definition["store_size"]
    rows = info.train_rows + info.test_rows
    return Cost(bytes=rows * side * side * info.planes, inodes=6)
