"""What depends on the machine that plans: the precision that pays, and how many processes."""

from __future__ import annotations

import os

from kdscale.config.schema import StageSpec, TrainConfig
from kdscale.errors import ConfigError

__all__ = ["best_precision", "fitting_processes", "processes_of", "threads_of"]


def best_precision() -> str:
    """bf16 where the processor or GPU computes in it (2.0 to 2.4 x fp32 on a CPU that does), else fp32."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def fitting_processes(batch_size: int, train: TrainConfig) -> int:
    """One process a GPU, or a core: the most that divide the batch."""
    import torch

    most = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return max(n for n in range(1, max(1, most) + 1) if batch_size % (n * train.accumulation) == 0 or n == 1)


def threads_of(processes: int) -> int:
    """Threads of each of a stage's processes on this machine: a core each, all of them for one alone."""
    return len(os.sched_getaffinity(0)) if processes == 1 else 1


def processes_of(spec: StageSpec) -> int:
    """How many processes train a stage here.

    Raises:
        ConfigError: the global batch does not divide.
    """
    train, wish = spec.train, spec.engine.processes
    processes = fitting_processes(train.batch_size, train) if wish == "auto" else int(wish)
    if train.batch_size % (processes * train.accumulation):
        raise ConfigError(
            f"stages.{spec.name}.train.batch_size: {train.batch_size} does not divide by "
            f"{processes} processes x accumulation {train.accumulation}"
        )
    return processes
