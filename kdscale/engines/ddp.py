"""PyTorch's own engine: DistributedDataParallel over 1 to n processes.

The strategy is wrapped whole, so every trainable part is reduced. BatchNorm's buffers stay each rank's
own (`broadcast_buffers=False`): see `nn.sync_bn` for how they are averaged for evaluation.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdscale import ranks
from kdscale.api import Batch, Losses, Strategy, Taught
from kdscale.config.schema import TrainConfig
from kdscale.engines.torch_engine import TorchEngine
from kdscale.nn.precision import autocast_of
from kdscale.optim import OwnRate
from kdscale.phases import phase

__all__ = ["DdpEngine"]

# torch 2.13 renamed the option; both keep each rank's BatchNorm statistics its own
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


class DdpEngine(TorchEngine):
    """Satisfies `api.Engine`; its arguments are those of `TorchEngine`."""

    def __init__(
        self,
        strategy: Strategy,
        train: TrainConfig,
        *,
        steps_per_epoch: int,
        own_rates: Mapping[str, OwnRate] | None = None,
    ) -> None:
        super().__init__(strategy, train, steps_per_epoch, own_rates or {})
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=train.precision == "fp16")

    def _wrap(self) -> None:
        self._module: nn.Module = self.unwrapped
        if ranks.world() > 1:
            self._module = DistributedDataParallel(
                self.unwrapped, gradient_as_bucket_view=True, **_OWN_BUFFERS,
                find_unused_parameters=self.unwrapped.most_zero_stage == 0 or _passes_may_differ(self.unwrapped),
            )  # fmt: skip

    def micro(self, index: int) -> AbstractContextManager[None]:
        """Enter micro-batch `index`; only the last one reduces gradients and updates."""
        self._enter_micro(index)
        if self._last or not isinstance(self._module, DistributedDataParallel):
            return nullcontext()
        return self._module.no_sync()

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run one pass under the stage's precision; the losses themselves are computed in fp32."""
        with autocast_of(self._train.precision, self._device):
            losses: Losses = self._module(batch, taught, pass_)
        return losses

    def update(self, loss: Tensor) -> None:
        """Differentiate; on the last micro-batch clip, apply one update and forget the gradients."""
        with phase("backward"):
            self._scaler.scale(loss / self._train.accumulation).backward()  # type: ignore[no-untyped-call]
        if not self._last:
            return
        self._reduce()
        with phase("optimizer"):
            if self._train.on_nonfinite != "skip" or not self._leave_out(finite=self._is_sound()):
                self._apply()
            self._optimizer.zero_grad(set_to_none=True)

    def _reduce(self) -> None:
        """Average the gradients over ranks; DistributedDataParallel has done so while it differentiated."""

    def _is_sound(self) -> bool:
        # a scaler skips overflowing steps itself and lowers its scale: that is no non-finite loss
        return self._scaler.is_enabled() or self._gradient_is_finite()

    def _apply(self) -> None:
        if self._train.grad_clip is not None:
            self._scaler.unscale_(self._optimizer)
            self.gradient_norm = nn.utils.clip_grad_norm_(self._parameters, self._train.grad_clip, foreach=True)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _scale(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def _set_scale(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)


def _passes_may_differ(strategy: Strategy) -> bool:
    """Whether something trains beside the student that belongs to one of several passes."""
    students = {id(parameter) for parameter in strategy.student.parameters()}
    beside = (id(p) not in students for p in strategy.parameters() if p.requires_grad)
    return len(strategy.passes) > 1 and any(beside)
