"""Stages under `iakd`, small and real: assembled as a plan and a worker assemble them."""

from __future__ import annotations

from typing import Any

import torch

from kdscale.api import Batch, DatasetInfo
from kdscale.config.schema import StageSpec
from kdscale.pipeline.assemble import Assembled, Parent, assemble

INFO = DatasetInfo(5, 1, 16, 100, 10, (0.5,), (0.25,), tuple("abcde"))
SMALL = [4, 8, 16]
STUDENT = {"model": "resnet_cifar", "depth": 8, "widths": SMALL}
TEACHER = {"model": "resnet_cifar", "depth": 14, "widths": SMALL}
WHOLE = {name: [name] for name in ("stem", "stage1", "stage2", "stage3", "head")}
"""Everything of a network is a unit."""


def mixture(
    options: dict[str, Any] | None = None, *, strategy: str = "iakd", teacher: dict[str, Any] = TEACHER,
    total_steps: int = 10, **stage: Any,
) -> Assembled:  # fmt: skip
    """A stage of 10 epochs with one teacher."""
    document = {
        "name": "s", "student": STUDENT, "teachers": {"t": {"from": "t"}}, "passes": {"main": [{"name": "ce"}]},
        "strategy": strategy, "options": options or {}, "train": {"epochs": 10, "precision": "fp32"},
    }  # fmt: skip
    taught = StageSpec.model_validate({"name": "t", "student": teacher, "seed": 7})
    spec = StageSpec.model_validate(document | stage)
    return assemble(spec, INFO, {"t": Parent(taught, INFO)}, total_steps=total_steps, train_rows=100)


def noise(step: int = 0, count: int = 8) -> Batch:
    """Images that depend on the step."""
    rng = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=rng)
    return Batch(images, torch.randint(0, 5, (count,), generator=rng), torch.arange(count), view=0, step=step)
