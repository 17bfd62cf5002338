"""The processes that train one stage together; the one place that calls torch's collectives.

Everything works without a process group too, as a world of one, so that callers need no branches; and for ranks that
are threads of one process and take turns, as in a replay.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from kdscale import turns

__all__ = [
    "barrier",
    "broadcast_object",
    "gather_objects",
    "gather_with_gradient",
    "join",
    "leave",
    "local_rank",
    "max_",
    "mean_",
    "rank",
    "sum_",
    "sum_with_gradient",
    "world",
]


def rank() -> int:
    """This process's number among all ranks, from 0."""
    if seat := turns.seat():
        return seat.rank
    return dist.get_rank() if _joined() else 0


def world() -> int:
    """How many processes train this stage."""
    if seat := turns.seat():
        return seat.world
    return dist.get_world_size() if _joined() else 1


def local_rank() -> int:
    """This process's number on its machine, from 0 (decides the GPU)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join(backend: Literal["gloo", "cpu:gloo,cuda:nccl"], timeout_s: float = 1800.0) -> None:
    """Enter the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe.

    A world of one joins nothing: it has nobody to talk to.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _joined():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def leave() -> None:
    """Leave the process group, if one was joined."""
    if _joined():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if seat := turns.seat():
        seat.exchange(None)
    elif world() > 1:
        dist.barrier()


def sum_(tensor: Tensor) -> Tensor:
    """Add `tensor` over all ranks, in place; returns it."""
    if seat := turns.seat():
        tensor.copy_(sum(seat.exchange(tensor.clone())))  # from rank 0 on, as a sum of two is in any order
    elif world() > 1:
        dist.all_reduce(tensor)
    return tensor


def max_(tensor: Tensor) -> Tensor:
    """Take the elementwise maximum over all ranks, in place; returns it."""
    if seat := turns.seat():
        tensor.copy_(torch.stack(seat.exchange(tensor.clone())).amax(0))
    elif world() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def mean_(tensor: Tensor) -> Tensor:
    """Average `tensor` over all ranks, in place; returns it."""
    return sum_(tensor).div_(world()) if world() > 1 else tensor


def gather_objects(value: Any) -> list[Any]:
    """Collect small picklable values of all ranks, in rank order; for set-up, not for the step."""
    if seat := turns.seat():
        return seat.exchange(value)
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Give every rank the value that rank 0 holds; for set-up, not for the step."""
    if seat := turns.seat():
        return seat.exchange(value)[0]
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class SumAcrossRanks(torch.autograd.Function):
    """Sum over ranks whose backward sums the gradients over ranks (its exact adjoint), as often as wanted."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # through itself: a sum in place would be left out of a second derivative
        return sum_with_gradient(grads[0])


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Add `tensor` over all ranks; differentiable."""
    return SumAcrossRanks.apply(tensor) if world() > 1 else tensor  # type: ignore[no-untyped-call]


class GatherFromRanks(torch.autograd.Function):
    """Concatenation over ranks whose backward sums the gradients over ranks (its exact adjoint)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        if seat := turns.seat():
            return torch.cat(seat.exchange(tensor.clone()))
        parts = [torch.empty_like(tensor) for _ in range(world())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_with_gradient(grads[0]).narrow(0, rank() * ctx.rows, ctx.rows)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate all ranks' rows in rank order; every rank must hold equally many. Differentiable.

    Where every rank then computes the same loss of all rows, or a share of it whose mean over ranks is that loss,
    the mean of the parameters' gradients over ranks is that of one process: no factor is needed.
    """
    return GatherFromRanks.apply(tensor.contiguous()) if world() > 1 else tensor  # type: ignore[no-untyped-call]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
