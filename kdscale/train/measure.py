"""A measuring stage: own metrics of a finished network's test set, and its figures on further test sets.

One process answers every row, in the order of the test set and in fp32, however many processes trained: a metric sees
the same logits on any number of them.
"""

from __future__ import annotations

import math
import numbers
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdscale import plugins
from kdscale.api import Batch, DatasetInfo, Outputs
from kdscale.config.schema import DataConfig, PluginsConfig
from kdscale.data.loader import EvalLoader
from kdscale.errors import StageError
from kdscale.pipeline.assemble import own_network
from kdscale.train.attempts import STATE_EVERY_S, Attempt, attempted
from kdscale.train.build import evaluation_rows, parents_of_stage, store_of_stage
from kdscale.train.evaluate import Evaluator, Figures
from kdscale.train.pixels import PixelFigures
from kdscale.train.stop import Interrupted, Stop

__all__ = ["measured_by", "run_measurement"]

Metric = Callable[[Tensor, Tensor], Any]

_NO_LOSS = "the network is trained and stays: mend the metric and give the command again"


def run_measurement(root_path: Path, digest: str, stop: Stop | None = None) -> bool:
    """Measure, in this process alone; a stage that is done already is left as it is.

    Returns:
        Whether it is done; False when it was asked to stop, and begins anew the next time.

    Raises:
        StageError: the network is not there or changed, a metric fails, or another live attempt holds the stage.
        PluginError: a metric cannot be imported.
    """
    return attempted(_Measurement, root_path, digest, stop)


class _Measurement(Attempt):
    """One attempt at a measuring stage."""

    def run(self, device: torch.device) -> bool:
        self.stop.step = 0
        self.folder.write_state(state="running", reason="", step=0, steps=self.definition["cost"]["steps"])
        parents, consumed = parents_of_stage(self.definition, self.root)
        channels_last = parents["student"].spec.train.channels_last
        network = own_network(parents["student"]).eval().prepare(channels_last, device)
        self._device, self._network = device, network
        try:
            results: dict[str, Any] = {
                "metrics": self._own(),
                "sets": {name: self._of_set(name) for name in self.definition["sets"]},
            }
        except Interrupted as reason:
            self.folder.write_state(state="interrupted", reason=str(reason), step=0)
            return False
        results |= {"wall_s": time.time() - self.begun}
        self.folder.write_state(state="done", reason="", step=self.stop.step, results=results, consumed=consumed)
        return True

    def _own(self) -> dict[str, Any]:
        """Metrics of the stage's own test set."""
        metrics = {name: metric for name, (metric, _) in self.definition["measures"]["metrics"].items()}
        if not metrics:
            return {}
        _, logits, labels = self._answered(self.definition["data"], self.spec.data)
        return self._measured(metrics, logits, labels, f"stages.{self._trained}.eval.metrics", "test")

    def _of_set(self, name: str) -> dict[str, Any]:
        """Usual figures and metrics of a further set."""
        entry = self.definition["sets"][name]
        figures, logits, labels = self._answered(entry, DataConfig.model_validate(entry["data"]))
        found = {"rows": figures.samples, **_usual(figures), "per_class": figures.per_class}
        if entry["metrics"]:
            at = f"stages.{self._trained}.eval.sets.{name}"
            found["metrics"] = self._measured(entry["metrics"], logits, labels, at, name)
        return found

    @property
    def _trained(self) -> str:
        """The stage whose network is measured."""
        return str(self.definition["name"]).removesuffix("-eval")

    def _measured(
        self, metrics: Mapping[str, str], logits: Tensor, labels: Tensor, at: str, where: str
    ) -> dict[str, Any]:
        return {
            name: measured_by(metric_of(metric, self.spec.plugins), logits, labels, f"{at}: {metric} on {where}")
            for name, metric in metrics.items()
        }

    def _answered(
        self, entry: Mapping[str, Any], data: DataConfig
    ) -> tuple[Figures | PixelFigures, Tensor, Tensor]:  # fmt: skip
        """Figures of a test split, its logits (N, C) and labels (N,); of pixels, which are too many, neither."""
        store = store_of_stage(self.definition | {"data": entry}, self.root, data.stage_to, self.stop.move)
        info = DatasetInfo.of(entry["info"])
        rows = evaluation_rows(per_pixel=info.per_pixel)
        loader = EvalLoader(store, data, "test", batch_size=rows, rank=0, world=1)
        kept = _Kept(self._network, self._told, keeps=not info.per_pixel)
        evaluator = Evaluator(
            kept.seen(loader), (), info.classes, self._device, loader.samples, per_pixel=info.per_pixel
        )
        figures = evaluator(kept)
        assert figures is not None
        return figures, *kept.all()

    def _told(self, rows: int) -> None:
        """Between batches: say how far it is, keep the claim alive, leave when asked."""
        self.stop.move()
        self.stop.step += rows
        if self.folder.cancel_request() is not None:
            self.stop.ask("cancelled by its user")
        if self.stop.asked:
            raise Interrupted(self.stop.reason)
        if self.claim is not None and time.monotonic() - self._written > STATE_EVERY_S:
            self._written = time.monotonic()
            self.claim.heartbeat()
            self.folder.write_state(step=self.stop.step)


class _Kept(nn.Module):
    """A network that keeps its logits in host memory, beside the labels of what it was asked."""

    def __init__(self, network: nn.Module, told: Callable[[int], None], *, keeps: bool) -> None:
        super().__init__()
        self._network, self._told, self._keeps = network, told, keeps
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def seen(self, loader: EvalLoader) -> Iterator[Batch]:
        for batch in loader:
            self._told(len(batch.rows))
            if self._keeps:
                self._labels.append(batch.labels)
            yield batch

    def forward(self, images: Tensor) -> Outputs:
        answered: Outputs = self._network(images)
        if self._keeps:
            self._logits.append(answered.logits.float().cpu())
        return answered

    def all(self) -> tuple[Tensor, Tensor]:
        if not self._logits:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        return torch.cat(self._logits), torch.cat(self._labels)


# ------------------------------------------------------------------------------- metrics


def metric_of(name: str, allowed: PluginsConfig) -> Metric:
    """A metric by its name, or a user's own function. Raises: PluginError."""
    if ":" in name:
        own: Metric = plugins.user_function(name, allowed.allow, allowed.path)
        return own
    shipped: Metric = plugins.load("metrics", name)
    return shipped


def measured_by(metric: Metric, logits: Tensor, labels: Tensor, what: str) -> float | dict[str, float]:
    """Ask a metric.

    Args:
        metric: given copies of what follows, so that none sees what another does to them.
        logits: (N, C) of a whole test set, fp32 on the CPU.
        labels: (N,).
        what: the metric and where it is asked, for errors.

    Returns:
        Its number, or its numbers by name.

    Raises:
        StageError: it raises, or gives no finite number.
    """
    try:
        with torch.no_grad():
            found = metric(logits.clone(), labels.clone())
    except Exception as error:  # whatever the user's own function does
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        said = f"{what} raises {type(error).__name__}: {error} ({place})"
        raise StageError(f"{said}; {_NO_LOSS}") from error
    if isinstance(found, Mapping):
        if not found:
            raise StageError(f"{what} gives an empty mapping, not numbers by name; {_NO_LOSS}")
        return {str(name): _number(value, f"{what}, {name},") for name, value in found.items()}
    return _number(found, what)


def _number(value: Any, what: str) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        said = f"{type(value).__name__}, not a number: return a float, or a dict of floats"
        raise StageError(f"{what} gives {said}; {_NO_LOSS}")
    if not math.isfinite(number):
        raise StageError(f"{what} gives {float(number)}, not a finite number; {_NO_LOSS}")
    return float(number)


def _usual(figures: Figures | PixelFigures) -> dict[str, Any]:
    """Those that need no teacher."""
    return {name: value for name, value in figures.results().items() if isinstance(value, float)}
