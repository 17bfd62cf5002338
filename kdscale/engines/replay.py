"""The engine of a replay: DDP's arithmetic for ranks that take turns in one process, and a close look at one step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kdscale import ranks
from kdscale.api import Batch, Losses, Taught
from kdscale.engines.ddp import DdpEngine
from kdscale.engines.state_files import read_tensors, restore_buffers

__all__ = ["Held", "Observer", "ReplayEngine"]


@runtime_checkable
class Observer(Protocol):
    """Looks at the steps that an engine runs."""

    micro: int
    """Told which micro-batch is next."""

    def forward(self, taught: Taught) -> AbstractContextManager[None]:
        """Look at a forward pass."""

    def losses(self, pass_: str, losses: Losses, share: float) -> None:
        """Take in what it gave; `share` is its part of the step."""

    def gradient(self, named: Mapping[str, Tensor]) -> None:
        """Take in the reduced gradients, by parameter."""


@dataclass(frozen=True)
class Held:
    """What a step changes, as it was before."""

    tensors: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    scale: dict[str, Any]


class ReplayEngine(DdpEngine):
    """Satisfies `api.Engine`; its arguments are those of `TorchEngine`.

    DDP reduces by torch.distributed, which knows processes only; here the ranks' gradients are added up as it does.
    """

    watch: Observer | None = None
    """What looks at the steps that are run; None for those that only lead there."""

    def _wrap(self) -> None:
        self._module = self.unwrapped

    def load_weights(self, folder: Path, step: int) -> None:
        """Read a checkpoint without its optimizer, which may be sharded: enough for the step that it stands before."""
        self._restore_parameters(read_tensors(folder, self._device, sharded=False))
        restore_buffers(folder, self.unwrapped)
        self._set_rate(step)

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run one pass; a watch sees all that happens in it."""
        if self.watch is None:
            return super().forward(batch, taught, pass_)
        with self.watch.forward(taught):
            losses = super().forward(batch, taught, pass_)
        self.watch.losses(pass_, losses, 1 / self._train.accumulation)
        return losses

    def _enter_micro(self, index: int) -> None:
        super()._enter_micro(index)
        if self.watch is not None:
            self.watch.micro = index

    def _reduce(self) -> None:
        if ranks.world() > 1:
            self._average()
        if self.watch is not None:
            scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
            trained = ((name, p.grad) for name, p in self.unwrapped.named_parameters())
            self.watch.gradient({name: grad / scale for name, grad in trained if grad is not None})

    def _average(self) -> None:
        """Average the gradients over ranks; who has none of a parameter that another has counts as 0."""
        shares = [None if p.grad is None else p.grad / ranks.world() for p in self._parameters]
        for parameter, parts in zip(self._parameters, zip(*ranks.gather_objects(shares), strict=True), strict=True):
            found = [part for part in parts if part is not None]
            if found:
                parameter.grad = sum(found[1:], found[0])  # in the order of ranks

    @contextmanager
    def in_precision(self, precision: str | None) -> Iterator[None]:
        """Run steps in another precision; None leaves it."""
        own = self._train
        if precision is not None:
            self._train = own.model_copy(update={"precision": precision})
        try:
            yield
        finally:
            self._train = own

    def remember(self) -> Held:
        """Copy what a step changes, to run it again."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._named()}
        return Held(tensors, copy.deepcopy(self._optimizer.state_dict()), copy.deepcopy(self._scale()))

    @torch.no_grad()
    def recall(self, held: Held) -> None:
        """Put back what `remember` copied."""
        for name, tensor in self._named():
            tensor.copy_(held.tensors[name])
        self._optimizer.load_state_dict(copy.deepcopy(held.optimizer))
        self._optimizer.zero_grad(set_to_none=True)
        self._set_scale(copy.deepcopy(held.scale))

    def _named(self) -> list[tuple[str, Tensor]]:
        return [*self.unwrapped.named_parameters(), *self.unwrapped.named_buffers()]
