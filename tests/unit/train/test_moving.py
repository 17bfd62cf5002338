"""Batches that come to a device: in order, whole, and on a CPU untouched."""

from __future__ import annotations

import pytest
import torch

from kdscale.samples import Batch
from kdscale.train.moving import moved_to
from tests.unit.train.made_up import batch

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_on_a_cpu_batches_pass_as_they_are() -> None:
    given = [batch(step) for step in range(3)]
    assert all(ours is theirs for ours, theirs in zip(moved_to(torch.device("cpu"), given), given, strict=True))


def test_a_batch_knows_all_of_its_tensors() -> None:
    plain = batch(0)
    mixed = Batch(
        plain.images, plain.labels, plain.rows, 0, labels_b=plain.labels, lam=torch.ones(8),
        records={"t": torch.zeros(8, 3, dtype=torch.uint8)},
    )  # fmt: skip
    assert [t.shape[0] for t in plain.tensors()] == [8] * 3
    assert len(mixed.tensors()) == 6


@GPU
def test_on_a_gpu_they_arrive_whole_and_in_order() -> None:
    given = [batch(step, count=256, size=32) for step in range(20)]
    for ours, theirs in zip(moved_to(torch.device("cuda"), given), given, strict=True):
        torch.cuda._sleep(1_000_000)  # the GPU lags behind, while later copies are under way
        assert ours.images.device.type == "cuda"
        assert torch.equal(ours.images.cpu(), theirs.images)
