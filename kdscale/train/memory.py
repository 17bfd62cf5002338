"""Out of memory, in words: how much was there at most, and which setting would fit.

What a step needs beside the weights grows with the samples that a rank holds at once, so parts of a batch need about
as many parts less.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from kdscale import ranks
from kdscale.config.schema import StageSpec
from kdscale.errors import OutOfMemory
from kdscale.pipeline.limits import may_accumulate
from kdscale.train.build import Parts

__all__ = ["Memory", "MemoryOfStage", "advice", "is_out_of_memory"]

GB = 1e9
ROOM = 0.6
"""Share of the room for samples that a setting may need to be proposed: where memory ends, nobody knows how much more
the rest of the step would have asked for."""
LEAST = 0.05
"""Room for samples, as a share of all else, below which no batch is proposed."""
_ON_A_CPU = "DefaultCPUAllocator"
_MOMENTS = {"sgd": 1, "adamw": 2}
"""Copies of the weights that an optimizer keeps."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_OF_A_STEP = frozenset({"train_step", "write_first_look"})
"""Functions under which memory goes to a step's samples."""


@dataclass(frozen=True)
class Memory:
    """What a process had when it got no more; bytes."""

    peak: int
    """The most that it held."""
    limit: int
    """What there is for it; 0 where nobody says."""
    asked: int
    """What it did not get; 0 where nobody says."""
    fixed: int
    """What it held before the first sample, with gradients and what the optimizer keeps."""
    of: str
    """GPU memory, or memory."""


def advice(memory: Memory, spec: StageSpec, world: int, *, splits: bool) -> str:
    """What to say of a step that did not fit.

    Args:
        memory: what was measured.
        spec: of the stage.
        world: its processes.
        splits: whether its batches may be computed in parts.
    """
    train = spec.train
    share = train.batch_size // (world * train.accumulation)
    begun = f"out of memory: {_said(memory)}, at batch {share} a rank"
    room = (memory.limit or memory.peak) - memory.fixed
    if room < LEAST * memory.fixed:
        return f"{begun}: weights, optimizer and teachers alone need {_gb(memory.fixed)}: take a smaller network"
    per_sample = max(0, memory.peak + memory.asked - memory.fixed) / share
    fitting = [n for n in range(1, share) if share % n == 0 and n * per_sample <= ROOM * room]
    if not fitting:
        return f"{begun}: not one sample would fit beside what is there: take a smaller network, or lower data.size"
    most = fitting[-1]
    expected = f"would need about {_gb(memory.fixed + most * per_sample)}"
    if splits:
        return f"{begun}: train.accumulation={train.batch_size // (world * most)} {expected}"
    return (
        f"{begun}: train.batch_size={most * world} {expected}, as would engine.processes={train.batch_size // most} on "
        "as many devices (a term looks at the batch as a whole, so train.accumulation must stay 1)"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no more memory, on a GPU or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _ON_A_CPU in str(error) and "allocate memory" in str(error)
    )


class MemoryOfStage:
    """Knows what a stage held before its first sample; turns an error that says there is no memory into advice."""

    def __init__(self, spec: StageSpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._fixed = 0
        self._splits = False

    def mark(self, parts: Parts) -> None:
        """Take note that all is built and nothing has trained yet."""
        trained = sum(p.numel() * p.element_size() for p in parts.assembled.strategy.parameters() if p.requires_grad)
        train = self._spec.train
        copies = 1 + _MOMENTS[train.optimizer] + (train.ema is not None)
        self._fixed = _held(self._device)[0] + copies * trained
        self._splits = may_accumulate(self._spec, per_pixel=parts.store.info.per_pixel)

    @contextmanager
    def told(self) -> Iterator[MemoryOfStage]:
        """Raises: OutOfMemory, for whatever says that there was no memory."""
        try:
            yield self
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self._advice(error)) from error

    def _advice(self, error: BaseException) -> str:
        _, peak, limit, what = _held(self._device)
        memory = Memory(peak, limit // _sharing(self._spec, what), _asked(str(error)), self._fixed, what)
        if self._fixed and _in_a_step(error.__traceback__):
            return advice(memory, self._spec, ranks.world(), splits=self._splits)
        lines = str(error).splitlines() or ["MemoryError"]
        return f"out of memory outside of training steps: {_said(memory)} ({lines[0]})"


# --------------------------------------------------------------------------- what is there


def _held(device: torch.device) -> tuple[int, int, int, str]:
    """Bytes held now, at most so far, and in all; and of what."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device), total, "GPU memory"
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        return _status("VmSize"), _status("VmPeak"), own, "address space"
    return _status("VmRSS"), _status("VmHWM"), _memory_of_machine(), "memory"


def _status(entry: str) -> int:
    """An entry of this process's status in bytes; 0 where there is none, as on macOS."""
    with suppress(OSError):
        found = re.search(rf"{entry}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def _memory_of_machine() -> int:
    """That of the machine, or of the control group that this process is in; 0 where nobody says."""
    found = []
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        found.append(int(Path(f"/sys/fs/cgroup{group}/memory.max").read_text()))
    return min(found, default=0)


def _sharing(spec: StageSpec, what: str) -> int:
    """How many of a stage's processes have a memory together."""
    return max(1, ranks.world() // spec.resources.nodes) if what == "memory" else 1


def _asked(message: str) -> int:
    """What an allocator was asked for, by its own words."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) ?([KMGT]?)i?B?(?:ytes)?", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def _in_a_step(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name in _OF_A_STEP:
            return True
        traceback = traceback.tb_next
    return False


def _said(memory: Memory) -> str:
    asked = f", {_gb(memory.asked)} more asked for" if memory.asked else ""
    return f"peak {_gb(memory.peak)}{f' of {_gb(memory.limit)}' if memory.limit else ''} {memory.of}{asked}"


def _gb(count: int | float) -> str:
    return f"{count / GB:.1f} GB" if count < 100 * GB else f"{count / GB:,.0f} GB"
