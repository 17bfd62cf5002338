"""PyTorch's own engine: DistributedDataParallel over 1 to n processes.

The strategy is wrapped whole, so every trainable part is reduced. BatchNorm's buffers stay each rank's
own (`broadcast_buffers=False`): see `nn.sync_bn` for how they are averaged for evaluation.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdscale import ranks
from kdscale.api import Batch, Losses, Strategy, Taught
from kdscale.config.schema import TrainConfig
from kdscale.errors import CheckpointMismatch, NonFiniteLoss
from kdscale.optim import OwnRate, learning_rate, make_optimizer

__all__ = ["DdpEngine"]

# torch 2.13 renamed the option; both keep each rank's BatchNorm statistics its own
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}

MOST_LEFT_OUT = 5
"""Updates in a row that `on_nonfinite: skip` leaves out before it gives up."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DdpEngine:
    """Satisfies `api.Engine`.

    Args:
        strategy: the trained module, on its device, frozen parts already without gradient.
        train: hyper-parameters; `precision` is resolved (no longer "auto").
        steps_per_epoch: global batches an epoch.
        own_rates: learning rate factors and weight decays of terms, by parameter name prefix.
    """

    def __init__(
        self,
        strategy: Strategy,
        train: TrainConfig,
        *,
        steps_per_epoch: int,
        own_rates: Mapping[str, OwnRate] | None = None,
    ) -> None:
        self.unwrapped = strategy
        self.passes = strategy.passes
        self._train = train
        self._device = next(strategy.parameters()).device
        self._parameters = [p for p in strategy.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(strategy.named_parameters(), train, own_rates or {})
        self._rate: Callable[[int], float] = learning_rate(train, steps_per_epoch)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=train.precision == "fp16")
        self._ema = [p.detach().clone() for p in self._parameters] if train.ema else []
        self._last = True
        self.left_out = False
        """Whether the last update was left out because its gradient was not finite (`on_nonfinite: skip`)."""
        self._left_out_in_a_row = 0
        self._buffers_before: list[Tensor] = []
        if train.compile:
            strategy.student.compile()  # in place: the state_dict keeps its names
        self._module: nn.Module = strategy
        if ranks.world() > 1:
            self._module = DistributedDataParallel(strategy, gradient_as_bucket_view=True, **_OWN_BUFFERS)
        self._set_rate(0)

    def micro(self, index: int) -> AbstractContextManager[None]:
        """Enter micro-batch `index`; only the last one reduces gradients and updates."""
        self._last = index == self._train.accumulation - 1
        if index == 0 and self._train.on_nonfinite == "skip":
            self.left_out = False
            self._buffers_before = [buffer.clone() for buffer in self.unwrapped.buffers()]
        if self._last or not isinstance(self._module, DistributedDataParallel):
            return nullcontext()
        return self._module.no_sync()

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run one pass under the stage's precision; the losses themselves are computed in fp32."""
        with self.precision():
            losses: Losses = self._module(batch, taught, pass_)
        return losses

    def precision(self) -> torch.autocast:
        """The stage's precision, as a context."""
        dtype = AUTOCAST.get(self._train.precision)
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)

    def update(self, loss: Tensor) -> None:
        """Differentiate; on the last micro-batch clip, apply one update and forget the gradients."""
        self._scaler.scale(loss / self._train.accumulation).backward()  # type: ignore[no-untyped-call]
        if not self._last or (self._train.on_nonfinite == "skip" and not self._finite()):
            return
        if self._train.grad_clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._train.grad_clip, foreach=True)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _finite(self) -> bool:
        """Whether the reduced gradient is finite, the same on all ranks; if not, undo what the step has touched.

        Waits for the device at every update: the price of `on_nonfinite: skip`, which nobody else pays.
        """
        grads = [p.grad for p in self._parameters if p.grad is not None]
        if self._scaler.is_enabled() or torch.isfinite(torch.stack(torch._foreach_norm(grads)).sum()):
            # a scaler skips overflowing steps itself and lowers its scale: that is no non-finite loss
            self._left_out_in_a_row = 0
            return True
        self.left_out = True
        self._left_out_in_a_row += 1
        if self._left_out_in_a_row > MOST_LEFT_OUT:
            raise NonFiniteLoss(
                f"the gradient was not finite {self._left_out_in_a_row} times in a row: skipping does not help. "
                "Lower train.lr, set train.grad_clip, or train with precision fp32"
            )
        with torch.no_grad():
            for buffer, before in zip(self.unwrapped.buffers(), self._buffers_before, strict=True):
                buffer.copy_(before)
        self._optimizer.zero_grad(set_to_none=True)
        return False

    def end_step(self, step: int) -> None:
        """Close step `step`: average the weights (EMA), set the learning rate of the next step."""
        if self._train.ema:
            torch._foreach_lerp_(self._ema, [p.detach() for p in self._parameters], 1 - self._train.ema)
        self._set_rate(step + 1)

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        return float(self._optimizer.param_groups[0]["lr"] / self._optimizer.param_groups[0]["lr_factor"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the EMA weights, where EMA is on, in the strategy's parameters."""
        if not self._ema:
            yield
            return
        with torch.no_grad():
            held = [p.detach() for p in self._parameters]
            live = [p.clone() for p in held]
            torch._foreach_copy_(held, self._ema)
            try:
                yield
            finally:
                torch._foreach_copy_(held, live)

    # ------------------------------------------------------------------ state

    def save(self, folder: Path) -> None:
        """Rank 0 writes parameters, optimizer, EMA, scaler and step; every rank writes its own buffers.

        Raises:
            NonFiniteLoss: the last update broke the weights, which its own finite loss could not show.
        """
        self._demand_finite()
        save_file(_whole(dict(self.unwrapped.named_buffers())), folder / _buffers_of(ranks.rank()))
        if ranks.rank() == 0:
            save_file(_whole(self._tensors()), folder / "training.safetensors")
            state = {"step": self._step, "scaler": self._scaler.state_dict()}
            (folder / "engine.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. At another world size every rank takes the mean of all ranks' buffers.

        Raises:
            CheckpointMismatch: the checkpoint's parameters are not this strategy's.
        """
        saved = load_file(folder / "training.safetensors", device=str(self._device))
        self._restore(saved)
        self._restore_buffers(folder)
        state = json.loads((folder / "engine.json").read_text())
        self._scaler.load_state_dict(state["scaler"])
        self._set_rate(state["step"])

    def _demand_finite(self) -> None:
        norms = torch._foreach_norm([p.detach() for p in self.unwrapped.parameters()])
        if not torch.stack([norm.float() for norm in norms]).sum().isfinite():
            raise NonFiniteLoss(
                f"the weights became nan or inf in the update of step {self._step - 1}, though its loss was finite. "
                "Lower train.lr, set train.grad_clip or warmup_epochs, or train with precision fp32; "
                "the last checkpoint is from before it",
                self._step - 1,
            )

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"parameter.{name}": p.detach() for name, p in self.unwrapped.named_parameters()}
        for index, parameter in enumerate(self._parameters):
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        return tensors | {f"ema.{index}": shadow for index, shadow in enumerate(self._ema)}

    @torch.no_grad()
    def _restore(self, saved: dict[str, Tensor]) -> None:
        expected = {f"parameter.{name}" for name, _ in self.unwrapped.named_parameters()}
        found = {key for key in saved if key.startswith("parameter.")}
        if expected != found:
            odd = ", ".join(sorted(expected ^ found)[:5])
            raise CheckpointMismatch(f"the checkpoint's parameters are not this strategy's: {odd}")
        for name, parameter in self.unwrapped.named_parameters():
            parameter.copy_(saved[f"parameter.{name}"])
        for index, shadow in enumerate(self._ema):
            shadow.copy_(saved[f"ema.{index}"])
        self._optimizer.state.clear()
        for key, value in saved.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                parameter = self._parameters[int(number)]
                # the parameter's own memory layout, which the file does not keep
                like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
                self._optimizer.state[parameter][name] = like.copy_(value)

    @torch.no_grad()
    def _restore_buffers(self, folder: Path) -> None:
        files = sorted(folder.glob("buffers_rank*.safetensors"))
        if len(files) == ranks.world():
            chosen = [load_file(folder / _buffers_of(ranks.rank()))]
        else:
            chosen = [load_file(file) for file in files]
        for name, buffer in self.unwrapped.named_buffers():
            values = [tensors[name] for tensors in chosen]
            mean = values[0] if len(values) == 1 else torch.stack([v.double() for v in values]).mean(0)
            buffer.copy_(mean.to(buffer.dtype))

    def _set_rate(self, step: int) -> None:
        """Set the learning rate of the coming step."""
        self._step = step
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]


def _buffers_of(rank: int) -> str:
    return f"buffers_rank{rank:05d}.safetensors"


def _whole(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Contiguous copies that share no memory, as the file format demands."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
