"""The training loop: batches in, updates and metrics out, resumable at every step.

One step is one global batch. Everything that a step needs from the past is in `LoopState`, the engine
and the meter; everything random is a function of (seed, epoch, step), so a resumed loop goes on bitwise
as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch

from kdscale import ranks
from kdscale.api import Batch, BatchIterator, Engine, Losses, Outputs, Teacher, Tracker
from kdscale.config.schema import TrainConfig
from kdscale.draws import seed_of
from kdscale.phases import phase, waiting
from kdscale.teachers.ensemble import Ensemble
from kdscale.train.asking import ask
from kdscale.train.device import seed_generators
from kdscale.train.evaluate import Figures
from kdscale.train.metrics import Meter, one
from kdscale.train.moving import moved_to
from kdscale.train.pixels import PixelFigures
from kdscale.train.stop import Interrupted, Stop

__all__ = ["Loop", "LoopState", "seed_step", "train_step"]

HEARTBEAT_S = 10.0
CHECKPOINT_IS_DUE = "due"


@runtime_checkable
class BatchSource(Protocol):
    """What the loop needs of a loader."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> BatchIterator: ...


@dataclass
class LoopState:
    """Where training stands; goes into every checkpoint."""

    step: int = 0
    """Global batches consumed."""
    epoch: int = 0
    index: int = 0
    """Batches consumed of this epoch."""
    best_rating: float = -1.0
    """The best epoch's figure that epochs are rated by: top-1, or mIoU where pixels have classes."""
    best_epoch: int = -1
    best_rating_on_test: float = -1.0
    """Over epochs, where the paper's protocol asks for it: biased, for comparison with published tables only."""
    reached: list[str] = field(default_factory=list)
    """Snapshots already taken at the first epoch that met them, such as `acc:0.9`."""
    skip: list[int] = field(default_factory=list)
    """Steps whose batch is consumed without training: a loss was not finite there, and training rolled back."""
    skipped: int = 0
    """Updates left out so far because a gradient was not finite."""
    images: int = 0
    """Training images consumed over all attempts, and the seconds that took."""
    seconds: float = 0.0


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Make what this rank draws in a step a function of the stage's seed, the step and the rank."""
    seed_generators(seed_of("step", seed, step, ranks.rank()), device)


def train_step(
    engine: Engine, teachers: Sequence[Teacher | Ensemble], batch: Batch, accumulation: int, meter: Meter
) -> dict[str, Losses]:
    """Teach one batch: one optimizer update for each of the strategy's passes that has a sample on any rank.

    Teachers answer outside the engine: they are not synchronised, optimised or checkpointed. The student
    is reached only through the engine; called unwrapped it would skip the gradient all-reduce silently.
    """
    parts = batch.split(accumulation) if accumulation > 1 else [batch]
    results = []
    for index, part in enumerate(parts):
        taught = _taught(teachers, part, meter)
        losses = {}
        with engine.micro(index):
            idle = engine.idle(part, taught)
            for pass_ in engine.passes:
                if pass_ in idle:  # an update without a gradient is none: momentum and weight decay would move weights
                    continue
                with phase("losses"):
                    losses[pass_] = engine.forward(part, taught, pass_)
                engine.update(losses[pass_].total)
        results.append(losses)
    return one(results)


def _taught(teachers: Sequence[Teacher | Ensemble], part: Batch, meter: Meter) -> dict[str, Outputs]:
    if not teachers:
        return {}
    begun = time.perf_counter()
    with phase("teacher"), torch.no_grad():
        taught = ask(teachers, part)
    meter.spend("teacher", time.perf_counter() - begun)
    return taught


@dataclass
class Loop:
    """Trains one stage to its end, or until it is asked to stop.

    Attributes:
        save: writes a checkpoint of (state, meter); called by all ranks.
        validate: figures of the weights as they would be exported; None without validation rows.
        snapshot: writes the exported weights under a selector; called by all ranks.
        progress: told (state, metrics) at each logging; rank 0 only does anything with it.
    """

    train: TrainConfig
    seed: int
    engine: Engine
    teachers: Sequence[Teacher | Ensemble]
    loader: BatchSource
    meter: Meter
    tracker: Tracker | None
    device: torch.device
    stop: Stop
    keep: Sequence[str]
    save: Callable[[LoopState], None]
    validate: Callable[[], Figures | PixelFigures | None] | None
    test: Callable[[], Figures | PixelFigures | None] | None
    """Figures on test each epoch, for `protocol: paper` only; nothing is selected by them."""
    snapshot: Callable[[str], None]
    progress: Callable[[LoopState, dict[str, float]], None]
    heartbeat: Callable[[LoopState], None]
    before_epoch: Callable[[int], bool] = lambda epoch: True
    """Makes ready what an epoch reads; called by all ranks, False when asked to stop."""
    after_step: Callable[[int], None] = lambda step: None
    """Told how many steps are done, when all that belongs to the last one is; called by all ranks."""
    note: Callable[[int], None] = lambda step: None
    """Told which step was just taught, before anything of it is read."""
    state: LoopState = field(default_factory=LoopState)
    _beat: float = field(init=False, default=0.0)
    _since: float = field(init=False, default=0.0)
    _images_then: int = field(init=False, default=0)

    def run(self) -> None:
        """Train from `state` to the end. Raises: Interrupted, NonFiniteLoss."""
        state, steps = self.state, self.loader.steps_per_epoch
        if state.step == 0 and "epoch:0" in self.keep:
            self.snapshot("epoch:0")
        self._begin_interval()
        while state.epoch < self.train.epochs:
            with phase("filling"):
                ready = self.before_epoch(state.epoch)
            if not ready:
                self.checkpoint()
                raise Interrupted(self.stop.reason)
            self._train_epoch(steps)
            with phase("validation"):
                self._finish_epoch(steps)
            state.epoch, state.index = state.epoch + 1, 0
        self.checkpoint()

    def _train_epoch(self, steps: int) -> None:
        state = self.state
        batches = self.loader.epoch(state.epoch, state.index) if state.index < steps else iter(())
        try:
            waited = time.perf_counter()
            for batch in waiting(moved_to(self.device, batches), "data"):
                self.meter.spend("data", time.perf_counter() - waited)
                self._step(batch)
                self._between_steps()
                waited = time.perf_counter()
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def _step(self, batch: Batch) -> None:
        state = self.state
        if state.step not in state.skip:
            seed_step(self.seed, state.step, self.device)
            batch = replace(batch, step=state.step)
            losses = train_step(self.engine, self.teachers, batch, self.train.accumulation, self.meter)
            if self.engine.left_out:
                state.skipped += 1
            else:
                with phase("tracking"):
                    self.meter.add(losses, state.step)
            self.note(state.step)
        with phase("optimizer"):
            self.engine.end_step(state.step)
        state.step += 1
        state.index += 1
        state.images += len(batch.rows) * ranks.world()

    def _between_steps(self) -> None:
        state = self.state
        if state.step % self.train.log_every_steps == 0:
            with phase("log"):
                self._log()
        self.stop.step = state.step
        if self.stop.agreed(state.step):
            self.checkpoint()
            raise Interrupted(self.stop.reason)
        if state.step % self.train.checkpoint_every_steps == 0:
            self.checkpoint()
        now = time.monotonic()
        if now - self._beat > HEARTBEAT_S:
            self._beat = now
            self.heartbeat(state)
        self.after_step(state.step)

    def _begin_interval(self) -> None:
        self._beat = time.monotonic()
        self._since = time.perf_counter()
        self._images_then = self.state.images

    def _log(self) -> None:
        """Read the meter (the loop's only wait for the device) and write one line of metrics."""
        state = self.state
        metrics = self.meter.read()
        spent = time.perf_counter() - self._since
        seen = state.images - self._images_then
        state.seconds += spent
        if seen:
            steps = seen / self.train.batch_size
            metrics |= {"time/step_s": spent / steps, "train/images_per_s": seen / spent}
        missed = len(state.skip) + state.skipped
        self._emit(metrics | {"train/lr": self.engine.lr} | ({"train/skipped": missed} if missed else {}))
        self._since, self._images_then = time.perf_counter(), self.state.images

    def _finish_epoch(self, steps: int) -> None:
        """Validate, remember the best, and keep the snapshots that somebody asked for."""
        state = self.state
        completed = state.epoch + 1
        figures = None
        if self.validate is not None:
            self.meter.check()
            begun = time.perf_counter()
            figures = self.validate()
            if figures is None:
                self.checkpoint()
                raise Interrupted(self.stop.reason)
            self._emit(figures.metrics("val"))
            self._since += time.perf_counter() - begun  # not training time
        if figures is not None and figures.rating > state.best_rating:
            state.best_rating, state.best_epoch = figures.rating, state.epoch
            self.snapshot("best")
        if self.test is not None:
            self._look_at_test()
        for selector in self.keep:
            if selector not in state.reached and _meets(selector, completed, figures):
                self.snapshot(selector)
                state.reached.append(selector)
        if state.step % self.train.log_every_steps and completed == self.train.epochs:
            self._log()

    def _look_at_test(self) -> None:
        assert self.test is not None
        figures = self.test()
        if figures is None:
            self.checkpoint()
            raise Interrupted(self.stop.reason)
        self._emit(figures.metrics("test"))
        self.state.best_rating_on_test = max(self.state.best_rating_on_test, figures.rating)

    def checkpoint(self) -> None:
        """Save where training stands; called by all ranks. Raises: NonFiniteLoss."""
        with phase("checkpoint"):
            self.meter.check()
            self.save(self.state)

    def _emit(self, metrics: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log(self.state.step, metrics)
        self.progress(self.state, metrics)

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up the loop's part of a checkpoint."""
        self.state = LoopState(**saved["state"])
        self.meter.load(saved["meter"])

    def saved(self) -> dict[str, Any]:
        """The loop's part of a checkpoint; called by all ranks."""
        return {"state": asdict(self.state), "meter": self.meter.state()}


def _meets(selector: str, completed: int, figures: Figures | PixelFigures | None) -> bool:
    kind, _, value = selector.partition(":")
    if kind == "epoch":
        return completed == int(value)
    return kind == "acc" and figures is not None and figures.rating >= float(value)
