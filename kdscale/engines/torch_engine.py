"""What engines over torch do alike: the learning rate, EMA, gradients that are not finite, and checkpoints.

An engine adds how gradients come about, are reduced and applied, and which tensors this rank holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdscale import ranks
from kdscale.api import Batch, Strategy, Taught
from kdscale.config.schema import TrainConfig
from kdscale.engines.idle import Idle
from kdscale.engines.state_files import (
    read_engine,
    read_tensors,
    restore_buffers,
    write_buffers,
    write_engine,
    write_tensors,
)
from kdscale.errors import CheckpointMismatch, NonFiniteLoss
from kdscale.optim import OwnRate, learning_rate, make_optimizer

__all__ = ["TorchEngine"]

MOST_LEFT_OUT = 5
"""Updates in a row that `on_nonfinite: skip` leaves out before it gives up."""


class TorchEngine:
    """The common part of `api.Engine`'s implementations.

    Args:
        strategy: the trained module, on its device, frozen parts already without gradient.
        train: hyper-parameters; `precision` is resolved (no longer "auto").
        steps_per_epoch: global batches an epoch.
        own_rates: learning rate factors and weight decays of terms, by parameter name prefix.
    """

    _sharding: Mapping[str, int] = {}
    """How this rank's state is a part of the whole; empty where each rank holds all of it."""

    def __init__(
        self, strategy: Strategy, train: TrainConfig, steps_per_epoch: int, own_rates: Mapping[str, OwnRate]
    ) -> None:
        self.unwrapped = strategy
        self.passes = strategy.passes
        self._train = train
        self._device = next(strategy.parameters()).device
        self._parameters = [p for p in strategy.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(strategy.named_parameters(), train, own_rates)
        self._rate: Callable[[int], float] = learning_rate(train, steps_per_epoch)
        self._last = True
        self.left_out = False
        self.gradient_norm: Tensor | None = None
        """Of the last update, on its device, where something needed it; None where nobody measures it."""
        self._steps_left_out = 0
        """In a row, of which a pass at least was."""
        self._buffers_before: list[Tensor] = []
        if train.compile:
            strategy.student.compile()  # in place: the state_dict keeps its names
        self._wrap()
        self._ema = [tensor.clone() for tensor in self._held()] if train.ema else []
        self._set_rate(0)

    # ------------------------------------------------------------------ what an engine says of itself

    def _wrap(self) -> None:
        """Wrap the strategy, which may move or shard its parameters."""
        raise NotImplementedError

    def _held(self) -> list[Tensor]:
        """What this rank holds of the trained parameters, detached."""
        return [p.detach() for p in self._parameters]

    def _stepped(self) -> Sequence[Tensor]:
        """What the optimizer steps: the keys of its state, in an order that a resume finds again."""
        return self._parameters

    def _gathered(self, *, written: bool = False) -> AbstractContextManager[None]:
        """Hold all parameters whole; `written` says that what is written to them is to stay."""
        del written
        return nullcontext()

    # ------------------------------------------------------------------ steps

    def _enter_micro(self, index: int) -> None:
        self._last = index == self._train.accumulation - 1
        if index == 0 and self._train.on_nonfinite == "skip":
            self._steps_left_out = self._steps_left_out if self.left_out else 0
            self.left_out = False
            self._remember_buffers()

    def idle(self, batch: Batch, taught: Taught) -> Idle:
        """Which passes over a batch no rank has a sample for; called by all ranks before the first."""
        return Idle(self.unwrapped.picked(batch, taught))

    def _gradient_is_finite(self) -> bool:
        """Whether the reduced gradient is, the same on all ranks.

        Waits for the device at every update: the price of `on_nonfinite: skip`, which nobody else pays.
        """
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads))
        self.gradient_norm = norms.norm()
        return bool(torch.isfinite(norms.sum()))

    def _leave_out(self, *, finite: bool) -> bool:
        """Whether to leave the update out because its gradient is not finite; if so, undo what the step has touched."""
        if finite:
            if len(self.passes) > 1:  # the next pass undoes its own touch alone
                self._remember_buffers()
            return False
        self._steps_left_out += not self.left_out
        self.left_out = True
        if self._steps_left_out > MOST_LEFT_OUT:
            raise NonFiniteLoss(
                f"the gradient was not finite in {self._steps_left_out} steps in a row, from step "
                f"{self._step - MOST_LEFT_OUT} on: skipping does not help. "
                "Lower train.lr, set train.grad_clip, or train with precision fp32",
                self._step - MOST_LEFT_OUT,
            )
        with torch.no_grad():
            for buffer, before in zip(self.unwrapped.buffers(), self._buffers_before, strict=True):
                buffer.copy_(before)
        return True

    def _remember_buffers(self) -> None:
        self._buffers_before = [buffer.clone() for buffer in self.unwrapped.buffers()]

    def end_step(self, step: int) -> None:
        """Close step `step`: average the weights (EMA), set the learning rate of the next step."""
        if self._train.ema:
            torch._foreach_lerp_(self._ema, self._held(), 1 - self._train.ema)
        self._set_rate(step + 1)

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        return float(self._optimizer.param_groups[0]["lr"] / self._optimizer.param_groups[0]["lr_factor"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the EMA weights, where EMA is on, in the strategy's parameters, whole on every rank."""
        with self._ema_swapped(), self._gathered():
            yield

    @contextmanager
    def _ema_swapped(self) -> Iterator[None]:
        if not self._ema:
            yield
            return
        with torch.no_grad():
            held = self._held()
            live = [tensor.clone() for tensor in held]
            torch._foreach_copy_(held, self._ema)
            try:
                yield
            finally:
                torch._foreach_copy_(held, live)

    def _set_rate(self, step: int) -> None:
        """Set the learning rate of the coming step."""
        self._step = step
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]

    # ------------------------------------------------------------------ state

    def save(self, folder: Path) -> None:
        """Rank 0 writes what all hold alike, parameters above all; every rank its own buffers and shard.

        Raises:
            NonFiniteLoss: the last update broke the weights, which its own finite loss could not show.
        """
        self._demand_finite()
        write_buffers(folder, self.unwrapped)
        shared, own = self._tensors()
        with self._gathered():
            write_tensors(folder, shared | _parameters_of(self.unwrapped), own)
        write_engine(folder, {"step": self._step, "scaler": self._scale()}, self._sharding)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. At another world size every rank takes the mean of all ranks' buffers.

        Raises:
            CheckpointMismatch: the checkpoint's parameters are not this strategy's, or sharded in another way.
        """
        state = read_engine(folder, self._sharding)
        saved = read_tensors(folder, self._device, sharded=bool(self._sharding))
        self._restore_parameters(saved)
        self._restore_optimizer(saved)
        for index, shadow in enumerate(self._ema):
            shadow.copy_(saved[f"ema.{index}"])
        restore_buffers(folder, self.unwrapped)
        self._set_scale(state["scaler"])
        self._set_rate(state["step"])

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Optimizer and EMA: what all ranks hold alike, and what this rank holds alone."""
        return self._optimizer_tensors() | self._ema_tensors(), {}

    def _scale(self) -> dict[str, Any]:
        """State of the loss scaler, where there is one."""
        return {}

    def _set_scale(self, state: dict[str, Any]) -> None:
        """Take up the state of the loss scaler."""

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"optimizer.{index}.{name}": value
            for index, stepped in enumerate(self._stepped())
            for name, value in self._optimizer.state.get(stepped, {}).items()
            if isinstance(value, Tensor)
        }

    def _ema_tensors(self) -> dict[str, Tensor]:
        return {f"ema.{index}": shadow for index, shadow in enumerate(self._ema)}

    def _demand_finite(self) -> None:
        norms = torch._foreach_norm(self._held())
        # summed over ranks, since all of them must stop where one does
        if not ranks.sum_(torch.stack([norm.float() for norm in norms]).sum()).isfinite():
            raise NonFiniteLoss(
                f"the weights became nan or inf in the update of step {self._step - 1}, though its loss was finite. "
                "Lower train.lr, set train.grad_clip or warmup_epochs, or train with precision fp32; "
                "the last checkpoint is from before it",
                self._step - 1,
            )

    @torch.no_grad()
    def _restore_parameters(self, saved: Mapping[str, Tensor]) -> None:
        named = dict(self.unwrapped.named_parameters())
        expected = {f"parameter.{name}" for name in named}
        found = {key for key in saved if key.startswith("parameter.")}
        if expected != found:
            odd = ", ".join(sorted(expected ^ found)[:5])
            raise CheckpointMismatch(f"the checkpoint's parameters are not this strategy's: {odd}")
        with self._gathered(written=True):
            for name, parameter in named.items():
                parameter.copy_(saved[f"parameter.{name}"])

    def _restore_optimizer(self, saved: Mapping[str, Tensor]) -> None:
        self._optimizer.state.clear()
        stepped = self._stepped()
        for key, value in saved.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                owner = stepped[int(number)]
                # the parameter's own memory layout, which the file does not keep
                like = torch.empty_like(owner) if value.shape == owner.shape else torch.empty_like(value)
                self._optimizer.state[owner][name] = like.detach().copy_(value)


def _parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {f"parameter.{name}": p.detach() for name, p in module.named_parameters()}
