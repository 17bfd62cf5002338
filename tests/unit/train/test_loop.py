"""The loop over batches in memory: when it logs, saves, validates and keeps, and that it goes on where it stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import pytest
import torch
from torch import Tensor, nn

from kdscale.api import Batch, Outputs
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.errors import NonFiniteLoss
from kdscale.train.evaluate import Figures
from kdscale.train.loop import Loop, LoopState
from kdscale.train.metrics import Meter
from kdscale.train.stop import Interrupted, Stop
from tests.unit.train.made_up import Convolutional, Linear, batch, strategy

STEPS, EPOCHS = 10, 3
CLOCK = ("time/", "train/images_per_s")


class InMemory:
    steps_per_epoch = STEPS

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.begun.append((epoch, start))
        return (batch(epoch * STEPS + index) for index in range(start, STEPS))


class Spool:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        kept = {name: float(value) for name, value in metrics.items() if not name.startswith(CLOCK)}
        self.lines.append((step, kept))

    def flush(self) -> int:
        return len(self.lines)

    def close(self) -> None:
        return


class Run:
    """A loop whose checkpoints are kept in memory, as JSON and files would hold them."""

    def __init__(
        self, folder: Path, student: nn.Module | None = None, top1: Sequence[float] = (), **options: Any
    ) -> None:
        self.folder, self.stop, self.spool = folder, Stop(), Spool()
        self.saved: list[dict[str, Any]] = []
        self.snapshots: list[tuple[str, int]] = []
        self.top1 = list(top1)
        torch.manual_seed(0)
        self.strategy = strategy(student or Convolutional())
        defaults = {"epochs": EPOCHS, "lr": 0.1, "log_every_steps": 4, "checkpoint_every_steps": 7, "batch_size": 8}
        train = TrainConfig.model_validate(defaults | {"precision": "fp32"} | options)
        self.loader = InMemory()
        cpu = torch.device("cpu")
        self.loop = Loop(
            train=train, seed=0, engine=DdpEngine(self.strategy, train, steps_per_epoch=STEPS), teachers=[],
            loader=self.loader, meter=Meter(["ce0"], cpu), tracker=self.spool, device=cpu, stop=self.stop,
            keep=["epoch:0", "epoch:2", "acc:0.5"], save=self._save, validate=self._validate if top1 else None,
            test=None, snapshot=lambda selector: self.snapshots.append((selector, self.loop.state.step)),
            progress=lambda state, metrics: None, heartbeat=lambda: None,
        )  # fmt: skip

    def _save(self, state: LoopState) -> None:
        at = self.folder / str(state.step)
        at.mkdir(parents=True, exist_ok=True)
        self.loop.engine.save(at)
        self.saved.append(json.loads(json.dumps(self.loop.saved() | {"at": str(at), "spool": self.spool.flush()})))

    def _validate(self) -> Figures:
        return Figures(1, self.top1[self.loop.state.epoch], 1.0, 0.0, 0.0, [])

    def resume(self, other: Run) -> None:
        saved = other.saved[-1]
        self.loop.restore(saved)
        self.loop.engine.load(Path(saved["at"]))
        self.spool.lines = copy.deepcopy(other.spool.lines[: saved["spool"]])

    def weights(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.strategy.state_dict().values()]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    names = iter("abcdefgh")
    return lambda *args, **options: Run(tmp_path / next(names), *args, **options)


def stop_at(run: Run, step: int) -> None:
    """Ask for a stop while a step runs, as a signal handler does."""
    real = run.loop.engine.end_step

    def end_step(at: int) -> None:
        real(at)
        if at + 1 == step:
            run.stop.ask("asked")

    run.loop.engine.end_step = end_step  # type: ignore[method-assign]


def test_logs_and_saves_by_the_step(make: Callable[..., Run]) -> None:
    run = make()
    run.loop.run()
    assert [step for step, _ in run.spool.lines] == [4, 8, 12, 16, 20, 24, 28, 30]  # the last ones too
    assert [entry["state"]["step"] for entry in run.saved] == [7, 14, 21, 28, 30]
    assert run.loop.state.images == 8 * STEPS * EPOCHS
    assert run.loader.begun == [(0, 0), (1, 0), (2, 0)]


def test_each_step_has_its_own_rate(make: Callable[..., Run]) -> None:
    run = make(schedule="onecycle", log_every_steps=1)
    run.loop.run()
    found = [metrics["train/lr"] for _, metrics in run.spool.lines]
    assert found == pytest.approx([0.1 * (30 - step) / 30 for step in range(1, 30)] + [0.1 / 30])


EMA = {"ema": 0.9, "optimizer": "adamw", "lr": 0.01}
STOPS = [([13, 14], {}), *(([*stops], EMA) for stops in ([3], [7], [10], [29, 30], [1, 2, 3]))]


@pytest.mark.parametrize(("stops", "options"), STOPS, ids=str)
def test_stopped_and_resumed_it_is_as_if_nothing_had_happened(
    make: Callable[..., Run], stops: list[int], options: dict[str, Any]
) -> None:
    top1 = [0.3, 0.6, 0.6]
    calm = make(top1=top1, **options)
    calm.loop.run()
    last: Run | None = None
    for step in [*stops, None]:
        run = make(top1=top1, **options)
        if last is not None:
            run.resume(last)
        if step is not None:
            stop_at(run, step)
            with pytest.raises(Interrupted, match="asked"):
                run.loop.run()
            assert run.loop.state.step == step
        else:
            run.loop.run()
        last = run
    assert last is not None
    assert all(torch.equal(a, b) for a, b in zip(last.weights(), calm.weights(), strict=True))
    assert last.spool.lines == calm.spool.lines
    same = {"seconds": 0.0}
    assert vars(last.loop.state) | same == vars(calm.loop.state) | same


def test_snapshots(make: Callable[..., Run]) -> None:
    run = make(top1=[0.3, 0.6, 0.6])
    run.loop.run()
    assert run.snapshots == [("epoch:0", 0), ("best", 10), ("best", 20), ("epoch:2", 20), ("acc:0.5", 20)]
    assert (run.loop.state.best_rating, run.loop.state.best_epoch) == (0.6, 1)  # the first on ties


class Sick(nn.Module):
    """Answers one training batch with nan."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.at, self.calls = Linear(), at, 0

    def forward(self, images: Tensor) -> Outputs:
        self.calls += 1
        answered = self.inner(images)
        return Outputs(answered.logits * float("nan")) if self.calls == self.at else answered


@pytest.mark.parametrize(("at", "kept"), [(2, []), (7, []), (8, [7]), (16, [7, 14])])
def test_a_loss_that_is_not_finite_is_named_and_nothing_after_it_is_saved(
    make: Callable[..., Run], at: int, kept: list[int]
) -> None:
    run = make(Sick(at))
    with pytest.raises(NonFiniteLoss, match=f"term ce0 became nan or inf at step {at - 1} on rank 0"):
        run.loop.run()
    assert [entry["state"]["step"] for entry in run.saved] == kept


class InfiniteSlope(nn.Module):
    """Its loss is finite at the seventh batch; the gradient there is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = Linear(), 0

    def forward(self, images: Tensor) -> Outputs:
        self.calls += 1
        logits = self.inner(images).logits
        return Outputs(logits + (logits - logits.detach()).abs().sqrt().sum() if self.calls == 7 else logits)


def test_weights_that_are_not_finite_are_never_saved(make: Callable[..., Run]) -> None:
    run = make(InfiniteSlope())
    with pytest.raises(NonFiniteLoss, match="weights became nan or inf in the update of step 6"):
        run.loop.run()
    assert run.saved == []


def test_an_epoch_of_nothing_saves_and_ends(make: Callable[..., Run]) -> None:
    run = make(epochs=0)
    run.loop.run()
    assert [entry["state"]["step"] for entry in run.saved] == [0]
