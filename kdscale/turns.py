"""Ranks that are threads of one process and take turns: each runs alone until it waits for the others.

So one process recreates what several did, bit for bit where sums of two are concerned: what a step reads that belongs
to a process, torch's generators above all, is put back whenever a rank has its turn again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["Seat", "run", "seat"]

T = TypeVar("T")
_local = threading.local()


class _Abandoned(BaseException):
    """Ends a rank because another one failed."""


class Seat:
    """One rank's place; what it deposits in an exchange is seen by all."""

    def __init__(self, table: _Table, rank: int) -> None:
        self.rank = rank
        self.world = table.world
        self._table = table
        self._exchanges = 0

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order; called by all ranks alike. A tensor must be a copy of its own."""
        # the next exchange's box is another one: the last rank reads this one while the first is at the next
        box = self._table.boxes[self._exchanges % 2]
        self._exchanges += 1
        box[self.rank] = value
        drawn = _generators()
        self._table.pass_on(self.rank)
        self._table.wait(self.rank)
        _restore(drawn)
        return list(box)


class _Table:
    """The ranks that take turns, and whose turn it is."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.boxes: tuple[list[Any], list[Any]] = ([None] * world, [None] * world)
        self.failed: BaseException | None = None
        self.given: list[Any] = [None] * world
        self._turn = [threading.Semaphore(0) for _ in range(world)]

    def act(self, rank: int, work: Callable[[], Any]) -> None:
        """Do the work as one rank, on a thread of its own."""
        try:
            self.wait(rank)
            _local.seat = Seat(self, rank)
            self.given[rank] = work()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the ranks were started
            self.fail(error)
        finally:
            self.pass_on(rank)

    def pass_on(self, rank: int) -> None:
        self._turn[(rank + 1) % self.world].release()

    def wait(self, rank: int) -> None:
        self._turn[rank].acquire()
        if self.failed is not None:
            raise _Abandoned

    def fail(self, error: BaseException) -> None:
        self.failed = self.failed or error
        for turn in self._turn:
            turn.release()


def seat() -> Seat | None:
    """The place of the rank that this thread is; None in a process that is one rank."""
    return getattr(_local, "seat", None)


def run(world: int, work: Callable[[], T]) -> list[T]:
    """Do `work` as each of `world` ranks; returns what each gave. The first error ends all and is raised.

    A world of one is this very thread: a debugger has it to itself.
    """
    if world == 1:
        return [work()]
    table = _Table(world)
    threads = [
        threading.Thread(target=table.act, args=(rank, work), name=f"rank {rank}", daemon=True) for rank in range(world)
    ]
    for thread in threads:
        thread.start()
    table.pass_on(world - 1)
    try:
        _join(threads)
    except KeyboardInterrupt as error:
        table.fail(error)
        _join(threads)  # a rank ends at its next exchange
    if table.failed is not None:
        raise table.failed
    return table.given


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _generators() -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.default_generator.get_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _restore(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    host, gpu = state
    torch.default_generator.set_state(host)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)
