"""Where the time of a training step goes: some steps of a running stage, measured on all its ranks.

A profile is asked for in the stage's folder, before it begins or while it runs. It changes no number: it looks at the
clock where a phase begins or ends, and hooks what the strategy itself does not say. Then a few steps more are traced
by PyTorch's profiler, which slows them down, so that nothing is timed there.
"""

from __future__ import annotations

import logging
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdscale import atomic, ranks
from kdscale.api import Strategy
from kdscale.config.schema import TrainConfig
from kdscale.phases import recorded_by
from kdscale.pipeline.profiles import Profiles
from kdscale.train.stop import Stop

__all__ = ["Clock", "Profiler"]

log = logging.getLogger(__name__)

SKIPPED_STEPS = 3
"""Between the wish and the first step that is measured: what is made ready once is no part of a step."""
TRACED_STEPS = 3
OTHER = "other"
EVERY = ("log", "checkpoint")
"""What comes once in many steps."""
BESIDE = frozenset({"validation", "filling"})
"""What happens between steps, and is no part of one."""
NO_MATHEMATICS = ("data", "tracking", "checkpoint", OTHER)
"""Phases that a bare loop over tensors in memory would not have."""


class Clock:
    """Charges time to phases: on a CPU this thread's, on a GPU its stream's.

    Each stretch from one mark to the next belongs to the innermost phase of that time. On a GPU a mark is an event of
    the stream, read when all is over: waiting of the host that the stream does not notice is charged to nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._open: list[str] = []
        self._stretches: list[tuple[str, Any]] = []
        self._ends: list[int] = []
        self._last_gradient: Any = None
        self.entered: Counter[str] = Counter()
        """How often each phase began."""
        self._begun = self._now()

    def enter(self, name: str) -> None:
        """Begin a phase."""
        self._mark()
        self._open.append(name)
        self.entered[name] += 1

    def leave(self) -> None:
        """End the innermost phase."""
        if self._open[-1] == "backward" and self._last_gradient is not None:
            self._stretches.append(("backward", self._last_gradient))
            self._stretches.append(("all_reduce", self._now()))
            self._last_gradient = None
        else:
            self._mark()
        self._open.pop()

    def gradient_came(self, parameter: Tensor) -> None:
        """Remember when the last gradient was computed: what backward does after that is waiting for other ranks."""
        del parameter
        self._last_gradient = self._now()

    def end_step(self) -> None:
        """Say that a step is over."""
        self._mark()
        self._ends.append(len(self._stretches))

    @property
    def steps(self) -> int:
        """How many are over."""
        return len(self._ends)

    def read(self) -> list[dict[str, float]]:
        """Seconds by phase of each step, and at the end of what came after the last; waits for a GPU."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found, before, index = [], self._begun, 0
        for end in (*self._ends, len(self._stretches)):
            spent: dict[str, float] = {}
            for name, mark in self._stretches[index:end]:
                spent[name] = spent.get(name, 0.0) + self._seconds(before, mark)
                before = mark
            found.append(spent)
            index = end
        return found

    def _mark(self) -> None:
        self._stretches.append((self._open[-1] if self._open else OTHER, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1000 if self._on_gpu else float(end - begin)


class _Ranges:
    """Phases as ranges of a trace."""

    def __init__(self) -> None:
        self._open: list[torch.profiler.record_function] = []

    def enter(self, name: str) -> None:
        self._open.append(torch.profiler.record_function(name))
        self._open[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        self._open.pop().__exit__(None, None, None)


@dataclass
class Profiler:
    """Measures steps when asked to; told after each, on all ranks at the same ones.

    Attributes:
        profiles: of the stage: where the wish stands, and what came of it is written.
        attempt: number of this one.
        checkpoint: saves the stage, as it does now and then anyway; called by all ranks.
    """

    profiles: Profiles
    attempt: int
    strategy: Strategy
    train: TrainConfig
    stop: Stop
    device: torch.device
    checkpoint: Callable[[], None]

    def __post_init__(self) -> None:
        self._doing: Callable[[int], None] = self._wait
        self._held = ExitStack()
        self.look()

    def look(self) -> None:
        """See whether a profile is asked for, to be agreed on with the other ranks; rank 0 looks for all."""
        if ranks.rank() == 0 and self._doing == self._wait:
            self.stop.profile_asked = self.profiles.wish() is not None

    def after_step(self, step: int) -> None:
        """Take notice that `step` steps are done."""
        if self._doing != self._wait or self.stop.profile_agreed:
            self._doing(step)

    def finish(self) -> None:
        """Training is over: keep what there is, where the stage was too short for more; called by all ranks."""
        self._held.close()
        if self._doing == self._measure and self._clock.steps:
            self._write()
        elif self._doing != self._traced and self.stop.profile_asked:
            log.warning("too short to be profiled: training ended before a step could be measured")
        self._forget()

    def close(self) -> None:
        """Let go of everything, whatever ended the stage; a wish that is not fulfilled is the next attempt's."""
        self._held.close()

    # ------------------------------------------------------------------ one after the other

    def _wait(self, step: int) -> None:
        """Agreed: read how many steps are wanted, and let some pass."""
        request = ranks.broadcast_object(self.profiles.wish() if ranks.rank() == 0 else None) or {}
        self._wanted = int(request.get("steps") or self.train.log_every_steps)
        self._until = step + SKIPPED_STEPS
        self._doing = self._begin

    def _begin(self, step: int) -> None:
        if step < self._until:
            return
        self._first, self._until = step, step + self._wanted
        self._clock = Clock(self.device)
        self._held.enter_context(_hooked(self.strategy, self._clock, compiled=self.train.compile))
        self._held.enter_context(recorded_by(self._clock))
        self._doing = self._measure

    def _measure(self, step: int) -> None:
        self._clock.end_step()
        if step < self._until or not self._clock.entered["log"]:
            return  # a line of metrics belongs to the picture
        self._held.close()
        self._write()
        self._until = step + TRACED_STEPS
        self._trace = torch.profiler.profile()
        self._trace.start()
        self._held.callback(self._trace.stop)
        self._held.enter_context(recorded_by(_Ranges()))
        self._doing = self._traced

    def _traced(self, step: int) -> None:
        if step < self._until:
            return
        self._held.close()
        with atomic.aside(self.profiles.trace(self.attempt, ranks.rank())) as side:
            self._trace.export_chrome_trace(str(side))
        self._forget()

    def _forget(self) -> None:
        self._doing = self._wait
        self.stop.profile_asked = self.stop.profile_agreed = False
        if ranks.rank() == 0:
            self.profiles.forget_wish()

    # ------------------------------------------------------------------ what it shows

    def _write(self) -> None:
        *steps, after = self._clock.read()
        phases = self._a_step(steps, after)
        whole = [sum(spent for name, spent in step.items() if name not in BESIDE) for step in steps]
        total = sum(phases.values())
        self.profiles.write(
            self.attempt, ranks.rank(),
            {
                "schema": 1, "rank": ranks.rank(), "world": ranks.world(), "host": socket.gethostname(),
                "device": _name_of(self.device), "threads": torch.get_num_threads(),
                "precision": self.train.precision, "batch_size": self.train.batch_size,
                "first_step": self._first, "steps": len(steps), "when": time.time(),
                "step_s": total, "median_s": statistics.median(whole), "longest_s": max(whole),
                "phases_s": phases, "overhead": sum(phases[name] for name in NO_MATHEMATICS) / total,
            },
        )  # fmt: skip

    def _a_step(self, steps: Sequence[Mapping[str, float]], after: Mapping[str, float]) -> dict[str, float]:
        """Mean seconds of a step by phase; what comes now and then, at the rate at which it does."""
        names = dict.fromkeys(name for step in steps for name in step if name not in (*BESIDE, *EVERY))
        mean = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in names}
        once = {name: self._once(name, [*steps, after]) for name in EVERY}
        return {
            **mean,
            "tracking": mean.get("tracking", 0.0) + once["log"] / self.train.log_every_steps,
            "checkpoint": once["checkpoint"] / self.train.checkpoint_every_steps,
            "data": mean.get("data", 0.0),
            OTHER: mean.get(OTHER, 0.0),
        }

    def _once(self, name: str, spent: Sequence[Mapping[str, float]]) -> float:
        """Seconds of what comes now and then, one time; a checkpoint is made where none came."""
        times = self._clock.entered[name]
        if times or name != "checkpoint":
            return sum(one.get(name, 0.0) for one in spent) / max(1, times)
        begun = time.perf_counter()
        self.checkpoint()
        return time.perf_counter() - begun


@contextmanager
def _hooked(strategy: Strategy, clock: Clock, *, compiled: bool) -> Iterator[None]:
    """Tell the clock when the student answers, and when a gradient came.

    A compiled student is left alone, since a hook would have it compiled anew: its forward is charged with the losses.
    """
    handles = []
    if not compiled:
        handles.append(strategy.student.register_forward_pre_hook(lambda *_: clock.enter("student")))
        handles.append(strategy.student.register_forward_hook(lambda *_: clock.leave(), always_call=True))
    if ranks.world() > 1:
        trained = (parameter for parameter in strategy.parameters() if parameter.requires_grad)
        handles += [p.register_post_accumulate_grad_hook(clock.gradient_came) for p in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
