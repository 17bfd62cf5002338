"""What a stage will cost, known before it runs: steps, FLOPs, bytes, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdscale.api import DatasetInfo
from kdscale.config.schema import StageSpec

__all__ = ["Cost", "Counted", "conversion_cost", "fill_cost", "training_cost", "training_rows"]

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
    step_flops: int = 0
    """Forward and backward of all passes of a step, one image, teachers aside: as counted, with what trains beside the
    student, and without the gradients that frozen parts and images need not have."""
    train_flops: int = 0
    """Whole stage: those of each image's step, and its forward through each live teacher."""
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


def training_rows(spec: StageSpec, info: DatasetInfo) -> int:
    """Rows that are trained on: after the validation split, what a transfer set leaves to others, and the limit."""
    data = spec.data
    left = max(0, info.train_rows - round(info.train_rows * data.val_fraction) - (data.transfer or 0))
    return min(left, data.limit or left)


@dataclass(frozen=True)
class Counted:
    """What one image costs a stage's networks."""

    params: int
    """Of the student."""
    flops: int
    """Forward of the student."""
    step_flops: int
    """Forward and backward of a step, teachers aside; 0 where nothing trains."""
    teacher_flops: Mapping[str, int]
    """Forward of each teacher that training asks: not of one that is there for its agreement alone."""


def training_cost(spec: StageSpec, info: DatasetInfo, counted: Counted, *, kept: int) -> Cost:
    """Cost of a training stage.

    Args:
        spec: the resolved stage.
        info: its data.
        counted: what its networks cost an image.
        kept: snapshots that will be kept.
    """
    train, passes = spec.train, max(1, len(spec.passes))
    teachers, params = counted.teacher_flops, counted.params
    asked = [flops for role, flops in teachers.items() if spec.teachers[role].cache is None]
    live, cached = sum(asked), sum(teachers.values()) - sum(asked)
    steps = train.epochs * (training_rows(spec, info) // train.batch_size)
    images = steps * train.batch_size
    held = 1 + (1 if train.optimizer == "sgd" else 2) + (1 if train.ema else 0)
    checkpoints = (train.keep_checkpoints + 1) * held * params * FLOAT_BYTES if train.epochs else 0
    return Cost(
        steps=steps,
        epochs=train.epochs,
        images=images,
        params=params,
        flops=counted.flops,
        teacher_flops=live + cached,
        step_flops=counted.step_flops,
        train_flops=images * (counted.step_flops + live),
        saved_flops=images * cached,
        forwards=images * (passes + len(asked)),
        backwards=images * passes,
        saved_forwards=images * (len(teachers) - len(asked)),
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
