"""Batches on their way to a rank's device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from kdscale.samples import Batch

__all__ = ["moved_to"]


def moved_to(device: torch.device, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches on a device; on a GPU each is copied beside what the GPU still has to do.

    From memory that the system may page out, a copy has the host wait until everything before it is done, and with that
    ends the lead that the host has over the GPU. So it goes through page-locked memory, on a stream of its own, for
    which only the work on that batch waits.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = batch.pinned().to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in moved.tensors():
            tensor.record_stream(current)  # or its memory could be given to the next copy while it is still read
        yield moved
