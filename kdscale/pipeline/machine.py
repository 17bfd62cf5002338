"""What depends on the machine that plans: the precision that pays, and how many processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kdscale.config.schema import StageSpec, TrainConfig
from kdscale.errors import ConfigError

__all__ = ["Site", "best_precision", "fitting_processes", "processes_of", "threads_of"]


@dataclass(frozen=True)
class Site:
    """A cluster that the planning machine is not like."""

    precision: str | None = None
    """What `train.precision: auto` means there; None where its nodes compute as this machine does."""

    def precision_of(self, spec: StageSpec) -> str:
        """Precision of a stage that leaves it open: GPUs of clusters have had bf16 since 2020."""
        return self.precision or ("bf16" if spec.resources.gpus_per_process else best_precision())

    def processes_of(self, spec: StageSpec) -> int:
        """Tasks of a stage's job.

        Raises:
            ConfigError: engine and resources contradict each other, or the global batch does not divide.
        """
        asked, wish = spec.resources, spec.engine.processes
        per_node = asked.processes_per_node or (1 if wish == "auto" else -(-int(wish) // asked.nodes))
        processes = asked.nodes * per_node
        if wish not in ("auto", processes):
            raise ConfigError(
                f"stages.{spec.name}.engine.processes: {wish}, but resources ask for {asked.nodes} nodes x {per_node} "
                "processes: leave one of them out"
            )
        _demand_divisible(spec, processes)
        return processes


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


def threads_of(processes: int, parallel: int | None = None) -> int:
    """Threads of each of a stage's processes on this machine; more than cores would wait for one another in circles.

    Args:
        processes: of the stage.
        parallel: stages that run at once, each with its share of the cores (`limits.parallel`). Where nobody says it,
            processes have a core each, and one alone has the machine to itself.
    """
    cores = len(os.sched_getaffinity(0))
    if parallel is None:
        return cores if processes == 1 else 1
    return max(1, cores // (parallel * processes))


def processes_of(spec: StageSpec) -> int:
    """How many processes train a stage here.

    Raises:
        ConfigError: the global batch does not divide.
    """
    train, wish = spec.train, spec.engine.processes
    processes = fitting_processes(train.batch_size, train) if wish == "auto" else int(wish)
    _demand_divisible(spec, processes)
    return processes


def _demand_divisible(spec: StageSpec, processes: int) -> None:
    train = spec.train
    if train.batch_size % (processes * train.accumulation):
        raise ConfigError(
            f"stages.{spec.name}.train.batch_size: {train.batch_size} does not divide by "
            f"{processes} processes x accumulation {train.accumulation}"
        )
