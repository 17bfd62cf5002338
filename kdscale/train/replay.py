"""Any step of a training stage, recreated in one process and looked at closely; nothing is written.

Batches, orders and draws are functions of seeds, and a checkpoint holds the rest, so the step is the very one that the
stage ran. A stage of several ranks has them here as well: they take turns, each with its share of the batch and its own
BatchNorm statistics.
"""

from __future__ import annotations

import copy
import warnings
from bdb import BdbQuit
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from kdscale import ranks, turns
from kdscale.api import Batch, Losses
from kdscale.config.schema import StageSpec
from kdscale.data.loader import TrainLoader
from kdscale.engines.replay import ReplayEngine
from kdscale.errors import NonFiniteLoss
from kdscale.pipeline.artifacts import Root
from kdscale.train.build import Parts, build
from kdscale.train.device import make_deterministic
from kdscale.train.loop import seed_step, train_step
from kdscale.train.metrics import Meter
from kdscale.train.moving import moved_to
from kdscale.train.operations import FIRST_OPERATION, TORCH, Stop
from kdscale.train.replay_start import Start
from kdscale.train.replay_teachers import heard
from kdscale.train.watching import Found, Watch

__all__ = ["Anomaly", "RankLook", "Replayed", "Wanted", "replay"]


@dataclass(frozen=True)
class Wanted:
    """Which step is to be recreated, and what of it is asked for."""

    definition: Mapping[str, Any]
    """Of the stage."""
    step: int
    precision: str | None = None
    """To run the step in once more."""
    anomaly: bool = False
    gradients: bool = False
    stop: Stop | None = None
    """Called where the first non-finite value shows, or else where the step begins, with the frame of the user's."""


@dataclass(frozen=True)
class RankLook:
    """What one rank saw of the step."""

    batch: Batch
    watch: Watch
    other: Watch | None
    """In the other precision."""


@dataclass
class Replayed:
    """A recreated step."""

    looks: list[RankLook]
    """By rank."""
    notes: list[str] = field(default_factory=list)
    anomaly: str | None = None
    """What the backward pass said, where that was asked for."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parameters and buffers (rank 0's) that the step began with."""

    @property
    def first(self) -> tuple[int, Found] | None:
        """The rank at which something was first not finite, and what."""
        found = [(look.watch.first.order, rank) for rank, look in enumerate(self.looks) if look.watch.first]
        if not found:
            return None
        _, rank = min(found)
        first = self.looks[rank].watch.first
        assert first is not None
        return rank, first

    def mean(self, name: str) -> float:
        """A term's value over all ranks, as the metrics have it."""
        return sum(look.watch.terms[name] for look in self.looks) / len(self.looks)

    @property
    def loss(self) -> float:
        """The sum that was differentiated, over all ranks."""
        return sum(look.watch.loss for look in self.looks) / len(self.looks)


class Anomaly(Exception):
    """The backward pass gave nan, and which operation did; ends a replay, as its last part."""


def replay(
    root: Root, wanted: Wanted, start: Start, device: torch.device, told: Callable[[int], None] = lambda step: None
) -> Replayed:
    """Run the steps from `start` and look at the one that is wanted.

    Args:
        root: where the stage's data and parents are.
        wanted: the step.
        start: where to begin.
        device: of all ranks.
        told: called with each step's number before it runs.

    Raises:
        KDScaleError: a parent, the data or a checkpoint cannot be read.
    """
    found = Replayed([])
    definition = _plain(wanted.definition)
    make_deterministic(StageSpec.model_validate(definition["spec"]), device)
    shared: list[Parts] = []

    def act() -> None:
        # on a GPU backward runs on a thread of torch's own, where a rank that waits would stop all others
        with torch.autograd.set_multithreading_enabled(device.type != "cuda"):
            _Rank(build(definition, root, device), wanted, start, root, found, shared).run(told)

    try:
        turns.run(start.world, act)
    except Anomaly as said:
        found.anomaly = str(said)
    except BdbQuit:  # its user has seen enough, and all else is known by then
        pass
    return found


def _plain(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's definition without what only makes it fast, and without caches, which building might write to."""
    changed = copy.deepcopy(dict(definition))
    changed["spec"]["train"]["compile"] = False
    changed["spec"]["data"]["stage_to"] = None
    changed["caches"] = {}
    return changed


class _Rank:
    """One rank of a replay."""

    def __init__(
        self, parts: Parts, wanted: Wanted, start: Start, root: Root, found: Replayed, shared: list[Parts]
    ) -> None:
        self._parts, self._wanted, self._start, self._found = parts, wanted, start, found
        self._spec = parts.spec
        self._engine = ReplayEngine(
            parts.assembled.strategy, parts.spec.train,
            steps_per_epoch=parts.train_loader.steps_per_epoch, own_rates=parts.assembled.own_rates,
        )  # fmt: skip
        shared.append(parts)
        first = shared[0]  # of teachers, which do not change, one is enough
        parts.live, parts.teachers = first.live, first.teachers
        self._teachers = heard(first, wanted.definition, root, found.notes)
        self._meter = Meter([], parts.device)

    def run(self, told: Callable[[int], None]) -> None:
        start, engine = self._start, self._engine
        if start.checkpoint is not None:
            if start.weights_only:
                engine.load_weights(start.checkpoint, start.step)
            else:
                engine.load(start.checkpoint)
        loader, last = self._parts.train_loader, self._wanted.step
        with closing(_batches(loader, start.step, last)) as batches:
            for step, batch in enumerate(moved_to(self._parts.device, batches), start.step):
                if ranks.rank() == 0:
                    told(step)
                if step == last:
                    self._look_at(batch)
                elif step not in start.passed_over:
                    self._step(step, batch)
                engine.end_step(step)

    def _step(self, step: int, batch: Batch) -> dict[str, Losses]:
        seed_step(self._spec.seed, step, self._parts.device)
        return train_step(self._engine, self._teachers, batch, self._spec.train.accumulation, self._meter)

    def _look_at(self, batch: Batch) -> None:
        wanted, engine = self._wanted, self._engine
        held = engine.remember()
        if ranks.rank() == 0:
            self._found.tensors = {name: tensor.cpu().contiguous() for name, tensor in held.tensors.items()}
        watch = self._watched(batch, keep_gradients=wanted.gradients)
        other = None
        if wanted.precision is not None:
            engine.recall(held)
            with engine.in_precision(wanted.precision):
                other = self._watched(batch)
        looks = ranks.gather_objects(RankLook(batch, watch, other))
        self._found.looks[:] = looks
        if wanted.stop is not None:
            engine.recall(held)
            self._stop_in(batch, wanted.stop)
        if wanted.anomaly:  # ends the replay
            engine.recall(held)
            self._differentiate(batch)

    def _watched(self, batch: Batch, **options: Any) -> Watch:
        samples = len(batch.rows) // self._spec.train.accumulation
        watch = Watch(self._parts.assembled.strategy, samples, **options)
        watch.weights()
        self._engine.watch = watch
        try:
            watch.step(self._step(batch.step, batch))
            if not self._start.weights_only:
                watch.weights(after=True)
        except NonFiniteLoss:  # it gives up after several, which are looked at all the same
            pass
        finally:
            self._engine.watch = None
        return watch

    def _differentiate(self, batch: Batch) -> None:
        """Raises: Anomaly."""
        with torch.autograd.set_detect_anomaly(mode=True), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                self._step(batch.step, batch)
            except RuntimeError as error:
                if "nan values" not in str(error):
                    raise
                called = next((str(one.message) for one in said if "Traceback of forward call" in str(one.message)), "")
                raise Anomaly(f"{error}{_innermost(called)}") from None
            except NonFiniteLoss:  # as above
                pass
        self._found.anomaly = "no operation of the backward pass gives nan"

    def _stop_in(self, batch: Batch, stop: Stop) -> None:
        """Run the step again up to where its first non-finite value shows; else to where its forward pass begins."""
        rank, found = self._found.first or (0, None)
        at = found.number if found is not None and found.number > 0 else FIRST_OPERATION
        self._watched(batch, **({"stop_at": at, "stop": stop} if ranks.rank() == rank else {}))


def _innermost(called: str) -> str:
    """The line of a forward call's traceback that is the user's, or the library's nearest to it."""
    lines = called.splitlines()
    places = [at for at, line in enumerate(lines) if line.lstrip().startswith("File ") and TORCH not in line]
    return "".join(f"\n    {line.strip()}" for line in lines[places[-1] : places[-1] + 2]) if places else ""


def _batches(loader: TrainLoader, first: int, last: int) -> Generator[Batch, None, None]:
    """This rank's batches of steps `first` to `last`."""
    for epoch in range(first // loader.steps_per_epoch, last // loader.steps_per_epoch + 1):
        begun = max(first - epoch * loader.steps_per_epoch, 0)
        with closing(loader.epoch(epoch, begun)) as batches:
            for batch in batches:
                yield batch
                if batch.step == last:
                    return
