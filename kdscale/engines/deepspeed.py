"""DeepSpeed: ZeRO 0 (shards nothing), 1 (optimizer), 2 (and gradients) or 3 (and parameters).

DeepSpeed reduces, shards, clips and applies; learning rates, EMA and checkpoints are ours, so that an
update means what it means under DDP. Its own checkpoints are pickled and are not used. The one file that
knows DeepSpeed, which is imported inside functions: most runs do without.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdscale import ranks
from kdscale.api import Batch, Losses, Strategy, Taught
from kdscale.config.schema import TrainConfig
from kdscale.engines.torch_engine import TorchEngine
from kdscale.errors import NonFiniteLoss
from kdscale.optim import OwnRate
from kdscale.phases import phase

__all__ = ["DeepSpeedEngine", "deepspeed_config"]

LARGEST_BUCKET = 50_000_000
"""Elements that are reduced, gathered or fetched ahead at a time."""

WHOLE_BELOW = 10_000
"""Elements up to which ZeRO 3 leaves a parameter whole: biases and norms, which cost more to gather than to hold."""

NO_LIMIT = 10**9


class DeepSpeedEngine(TorchEngine):
    """Satisfies `api.Engine`.

    Args:
        strategy: the trained module, on its device, frozen parts already without gradient.
        train: hyper-parameters; `precision` is resolved, and not fp16.
        zero_stage: 0 to 3.
        steps_per_epoch: global batches an epoch.
        own_rates: learning rate factors and weight decays of terms, by parameter name prefix.
    """

    def __init__(
        self,
        strategy: Strategy,
        train: TrainConfig,
        *,
        zero_stage: int,
        steps_per_epoch: int,
        own_rates: Mapping[str, OwnRate] | None = None,
    ) -> None:
        self._zero_stage = zero_stage
        self._sharding = {"zero_stage": zero_stage, "world": ranks.world()} if zero_stage else {}
        self._reached: set[Tensor] = set()
        """Where parts train in turns: what the gradients since the last update have reached."""
        super().__init__(strategy, train, steps_per_epoch, own_rates or {})

    def _wrap(self) -> None:
        deepspeed = _import_deepspeed(self._device.type)
        elements = sum(p.numel() for p in self._parameters)
        config = deepspeed_config(self._train, self._zero_stage, world=ranks.world(), elements=elements)
        with _contiguous(list(self.unwrapped.parameters()), sharded=self._is_sharded):
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=_Answering(self.unwrapped),
                optimizer=self._optimizer,
                model_parameters=self._parameters,
                config=config,
                dist_init_required=False,
            )
        if self.unwrapped.most_zero_stage == 0:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._reached.add)  # type: ignore[no-untyped-call]

    def micro(self, index: int) -> AbstractContextManager[None]:
        """Enter micro-batch `index`; only the last one updates."""
        self._enter_micro(index)
        self._engine.set_gradient_accumulation_boundary(self._last)
        return nullcontext()

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run one pass under the stage's precision; the losses themselves are computed in fp32."""
        return Losses(*self._engine(batch, taught, pass_))

    def update(self, loss: Tensor) -> None:
        """Differentiate; on the last micro-batch clip, apply one update and forget the gradients.

        Raises:
            NonFiniteLoss: a sharded gradient is not finite: DeepSpeed then leaves the update out, unasked.
        """
        with phase("backward"):
            self._engine.backward(loss)
        if self._last and self.unwrapped.most_zero_stage == 0:
            self._forget_made_up_gradients()
        skip = self._last and self._train.on_nonfinite == "skip"
        if skip and not self._zero_stage and self._leave_out(finite=self._gradient_is_finite()):
            self._engine.zero_grad()
            return
        with phase("optimizer"):
            self._engine.step()
        if skip and self._zero_stage:
            self._leave_out(finite=not self._zero.overflow)
        elif self._last and self._zero_stage and self._zero.overflow:
            raise NonFiniteLoss(
                f"the gradient of step {self._step} is not finite. Lower train.lr, set train.grad_clip or "
                "warmup_epochs, train with precision fp32, or set train.on_nonfinite to skip or rollback",
                self._step,
            )

    def _forget_made_up_gradients(self) -> None:
        """DeepSpeed reduces zeros where no gradient came: a part that sat out would decay and drift on its momentum."""
        for parameter in self._parameters:
            if parameter not in self._reached:
                parameter.grad = None
        self._reached.clear()

    # ------------------------------------------------------------------ what is sharded

    def _is_sharded(self, parameter: nn.Parameter) -> bool:
        """Whether DeepSpeed keeps a parameter in memory of its own."""
        return self._zero_stage == 3 or (self._zero_stage > 0 and parameter.requires_grad)

    def _held(self) -> list[Tensor]:
        if self._zero_stage < 3:
            return super()._held()
        return [_shard(p) for p in self._parameters]

    def _stepped(self) -> Sequence[Tensor]:
        if not self._zero_stage:
            return self._parameters
        flat: Sequence[Tensor] = (
            self._zero.fp32_partitioned_groups_flat
            if self._zero_stage == 3
            else self._zero.single_partition_of_fp32_groups
        )
        return flat

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        optimizer, ema = self._optimizer_tensors(), self._ema_tensors()
        if not self._zero_stage:
            return optimizer | ema, {}
        return ({}, optimizer | ema) if self._zero_stage == 3 else (ema, optimizer)

    def _restore_parameters(self, saved: Mapping[str, Tensor]) -> None:
        super()._restore_parameters(saved)
        if self._zero_stage:
            self._zero.refresh_fp32_params()

    @contextmanager
    def _gathered(self, *, written: bool = False) -> Iterator[None]:
        """Hold all parameters whole, without the hooks that would gather and give them back module by module."""
        if self._zero_stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        offload = self._zero.parameter_offload
        offload.partition_all_parameters()  # what stayed whole may be older than its shards, where EMA is swapped in
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks.clear()
        offload.backward_hooks.clear()
        try:
            with GatheredParameters(list(self.unwrapped.parameters()), modifier_rank=0 if written else None):
                yield
        finally:
            offload._register_deepspeed_module(offload.module)


def _shard(parameter: Any) -> Tensor:
    """This rank's part of a parameter that ZeRO 3 shards, without what fills it up to the others' size.

    Nobody writes there: it holds whatever the memory did.
    """
    size: int = parameter.ds_tensor.numel()
    weights = min(size, max(0, parameter.ds_numel - ranks.rank() * size))
    shard: Tensor = parameter.ds_tensor.data[:weights]
    return shard


class _Answering(nn.Module):
    """A strategy whose losses are plain tuples: DeepSpeed looks for gradients in those, not in our own types."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        losses: Losses = self.strategy(batch, taught, pass_)
        return losses.total, losses.terms, dict(losses.figures)


@contextmanager
def _contiguous(parameters: list[nn.Parameter], sharded: Callable[[nn.Parameter], bool]) -> Iterator[None]:
    """Hold parameters as DeepSpeed sends them to other ranks; those not sharded then get their own layout back."""
    layouts = [p.data for p in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    yield
    for parameter, layout in zip(parameters, layouts, strict=True):
        if not sharded(parameter):
            parameter.data = layout.copy_(parameter.data)


def deepspeed_config(train: TrainConfig, zero_stage: int, *, world: int, elements: int) -> dict[str, Any]:
    """DeepSpeed's config of a stage; every number is given, since its defaults change training.

    Args:
        train: hyper-parameters; `precision` is resolved, and not fp16.
        zero_stage: 0 to 3.
        world: number of processes.
        elements: of the trained parameters.
    """
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // (world * train.accumulation),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.grad_clip or 0.0,  # absent, it clips at 1.0
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},  # would cast weights, which BatchNorm on a CPU refuses
        "torch_autocast": {
            "enabled": train.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # of those it would reduce gradients in bf16
        },
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero_config(zero_stage, bucket=min(elements, LARGEST_BUCKET)),
        "steps_per_print": NO_LIMIT,
        "wall_clock_breakdown": False,
    }


def _zero_config(stage: int, bucket: int) -> dict[str, Any]:
    """Of one ZeRO stage; `bucket` elements are reduced at a time."""
    return {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": LARGEST_BUCKET,  # even, or it is refused
        "sub_group_size": NO_LIMIT,
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": WHOLE_BELOW,
        "stage3_model_persistence_threshold": NO_LIMIT,
        "stage3_max_live_parameters": NO_LIMIT,
        "stage3_max_reuse_distance": NO_LIMIT,
        "stage3_module_granularity_threshold": 0,
    }


def _import_deepspeed(device: str) -> Any:
    """Import DeepSpeed: quiet, on our process group, and without a compiler."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank()))
    if not dist.is_initialized():  # a process alone is in no group, and DeepSpeed does not go without
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # torch 2.13 has new names for collectives that DeepSpeed 0.19 calls by the old ones
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # On a CPU it would compile an operator of its own for shared memory, for half a minute; gloo serves as well.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False, dist_init_required=False)
    return deepspeed
