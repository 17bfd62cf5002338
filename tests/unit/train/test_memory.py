from __future__ import annotations

from typing import Any

import pytest
import torch

from kdscale.config.schema import StageSpec
from kdscale.train.memory import Memory, advice, is_out_of_memory

GB = 10**9


def stage(batch_size: int = 256, **train: Any) -> StageSpec:
    data = {"name": "synthetic"}
    student = {"model": "resnet_cifar", "depth": 8}
    return StageSpec.model_validate(
        {"name": "s", "data": data, "student": student, "train": {"batch_size": batch_size, **train}}
    )


def memory(**changes: Any) -> Memory:
    return Memory(
        **({"peak": 13_200_000_000, "limit": 16 * GB, "asked": 4 * GB, "fixed": 1 * GB, "of": "GPU memory"} | changes)
    )


def test_it_says_the_peak_and_how_many_parts_fit() -> None:
    said = advice(memory(), stage(), world=2, splits=True)
    assert said == (
        "out of memory: peak 13.2 GB of 16.0 GB GPU memory, 4.0 GB more asked for, at batch 128 a rank: "
        "train.accumulation=2 would need about 9.1 GB"
    )


def test_more_parts_than_there_are_already() -> None:
    said = advice(memory(), stage(512, accumulation=2), world=2, splits=True)
    assert "at batch 128 a rank: train.accumulation=4 would need about 9.1 GB" in said


def test_as_many_parts_as_it_takes() -> None:
    said = advice(memory(peak=15 * GB, asked=50 * GB, fixed=0), stage(), world=2, splits=True)
    assert "train.accumulation=8 would need about 8.1 GB" in said


def test_where_batches_cannot_be_parted_smaller_ones_and_more_devices() -> None:
    said = advice(memory(), stage(), world=2, splits=False)
    assert "train.batch_size=128 would need about 9.1 GB, as would engine.processes=4 on as many devices" in said
    assert "train.accumulation=" not in said


def test_no_batch_fits_where_the_weights_do_not() -> None:
    said = advice(memory(fixed=15_500_000_000), stage(), world=2, splits=True)
    assert said.endswith("weights, optimizer and teachers alone need 15.5 GB: take a smaller network")
    said = advice(memory(asked=5000 * GB), stage(), world=2, splits=True)
    assert "not one sample would fit" in said


def test_a_limit_that_nobody_knows_is_the_peak() -> None:
    said = advice(memory(limit=0, asked=0), stage(), world=2, splits=True)
    assert "peak 13.2 GB GPU memory, at batch 128 a rank: train.accumulation=2 would need about 7.1 GB" in said


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
    ids=["python", "cuda", "cpu", "shapes", "value"],
)
def test_which_errors_say_so(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one
