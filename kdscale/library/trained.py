"""One stage that trains a network, finished or not: what is known of it, and its network."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdscale.errors import StageError
from kdscale.report.records import StageRecord, SweepRecord
from kdscale.report.results import figures

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TrainedStage"]


class TrainedStage:
    """A stage of a sweep.

    Args:
        sweep: one that it belongs to.
        record: what its folder tells.
    """

    def __init__(self, sweep: SweepRecord, record: StageRecord) -> None:
        self._sweep, self._record = sweep, record

    def __repr__(self) -> str:
        rating = self._record.rating
        said = f", {self._sweep.rated_by} {rating:.4f} on test" if rating is not None else ""
        return f"TrainedStage({self.name!r}, {self.state}{said})"

    @property
    def name(self) -> str:
        """A name that can be pasted into any command, such as `bench:student[crd,s1]`."""
        return self._sweep.name_of(self._record)

    @property
    def digest(self) -> str:
        """Of all that decides its numbers."""
        return self._record.digest

    @property
    def state(self) -> str:
        """waiting, running, done, failed, ..."""
        return self._record.status

    @property
    def reason(self) -> str:
        """Why it is in that state, where there is a reason."""
        return str(self._record.state.get("reason", ""))

    @property
    def path(self) -> Path | None:
        """Its folder; None before there is one."""
        return self._record.folder

    @cached_property
    def axes(self) -> dict[str, str]:
        """The axis values that all trials have in common which use it."""
        users = [trial.axes for trial in self._sweep.trials if self.digest in trial.stages.values()]
        return {axis: value for axis, value in users[0].items() if all(u.get(axis) == value for u in users)}

    @property
    def config(self) -> dict[str, Any]:
        """The resolved stage: student, teachers, losses, train, data."""
        return dict(self._record.definition.get("spec") or {})

    @property
    def figures(self) -> dict[str, float | None]:
        """All figures by name; `val/...` is the last epoch's validation, else test, size or speed; shares in [0, 1]."""
        return figures(self._record)

    @property
    def results(self) -> dict[str, Any]:
        """The final figures as state.json has them, per-class accuracies among them; empty until it is done."""
        return self._record.results

    @property
    def curves(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Every metric over training: epochs (N,) and values (N,)."""
        return {
            name: (np.array([epoch for epoch, _ in points]), np.array([value for _, value in points]))
            for name, points in self._record.curves.items()
        }

    def model(self, weights: str = "last") -> nn.Module:
        """Its network, in eval mode, on the CPU.

        Args:
            weights: `last` (what its figures are of), `best`, or another snapshot that was kept.

        Returns:
            A plain module from preprocessed images to logits (B, C), of its own making with each call. Beside it,
            `.preprocess` makes its input of pictures (`kdscale.library.pictures`), and `.classes` names the logits.

        Raises:
            StageError: the stage is not done.
            ConfigError: there are no such weights.
            CheckpointError: its weights were changed since.
        """
        from kdscale.jobs.export_source import trained_network
        from kdscale.library.pictures import with_preprocessing
        from kdscale.pipeline.artifacts import StageFolder

        if self.path is None:
            raise StageError(f"{self.name} is {self.state}: it has no network yet")
        _, info, network = trained_network(StageFolder(self.path, writable=False), weights)
        return with_preprocessing(network, info.class_names)
