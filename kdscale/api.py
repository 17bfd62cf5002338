"""Every type that crosses a folder: a newcomer reads this file first, and samples.py for the data's half of it.

Shapes: B samples of one rank's batch, C classes, K channels, H W space.

    Dataset -> (data) -> Batch -> Teacher -> Outputs ┐
                           └──> Strategy(student, terms) -> Losses -> Engine.update
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdscale.samples import IGNORED, Batch, Dataset, DatasetInfo, Source

__all__ = [
    "IGNORED", "Batch", "Dataset", "DatasetInfo", "Engine", "Loss", "Losses", "Modifier", "Outputs", "PluginConfig",
    "Shapes", "Source", "Strategy", "Taught", "Teacher", "Term", "Tracker", "Weighted",
]  # fmt: skip


# --------------------------------------------------------------------------- networks


@dataclass(frozen=True)  # without slots, as Losses: ZeRO 3 looks for tensors in what a module gives by vars()
class Outputs:
    """What a network answers: logits, the tapped features in the order asked for, and of what is `Strategy.beside`."""

    logits: Float[Tensor, "B C *pixels"]
    features: list[Tensor] = field(default_factory=list)
    pixels: Tensor | None = None
    """The images (B, K, H, W) in [0, 1], a leaf of the logits' graph, where a term differentiates by them."""
    top: Int64[Tensor, "B"] | None = field(default=None, kw_only=True)
    """The class that it holds most probable, where logits were completed from a record and may not tell."""
    beside: Mapping[str, Float[Tensor, "B C"]] = field(default_factory=dict, kw_only=True)

    def at(self, temperature: float, student: Float[Tensor, "B C *pixels"], own: float = 1.0) -> Outputs:
        """For a loss that divides by `temperature`, the student's logits by `own`: a part record is completed."""
        return self


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a loss or modifier is built from: both sides' shapes from the dry forward, without B."""

    classes: int
    student: Sequence[tuple[int, ...]] = ()
    teacher: Sequence[tuple[int, ...]] = ()
    train_rows: int = 0
    post_relu: bool = True
    """Whether the teacher's taps lie behind a ReLU (decides a regressor's last layer)."""
    temperature: float = 1.0  # at which the term's loss softens the teacher's logits


@runtime_checkable
class Teacher(Protocol):
    """Answers a batch; a plain object and no module, so nothing can train, save or shard it."""

    name: str
    provides: frozenset[str]
    """What `Outputs` will hold: "logits", "features"."""

    def __call__(self, batch: Batch) -> Outputs: ...

    def fingerprint(self) -> str:
        """Hash of parameters and buffers: equal before and after a stage."""


BatchIterator = Iterator[Batch]
Taught = Mapping[str, Outputs]
"""Teachers' answers to one batch, by teacher name."""


# --------------------------------------------------------------------------- losses


class PluginConfig(BaseModel):
    """Options of a plug-in: typed, with defaults, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Loss(nn.Module):
    """One term: compares student and teacher on a batch.

    Returns (B,) where the loss is a mean over samples (`per_sample`), else ().
    Trainable parts (projectors, regressors) are made in `__init__` from the shapes and train with the student.
    """

    class Config(PluginConfig):
        """Options, with the defaults of the source."""

    revision: ClassVar[int] = 1
    """Raised whenever the numbers of this loss change: it enters the digest of every stage that uses it."""
    needs: ClassVar[frozenset[Literal["logits", "features", "labels"]]] = frozenset({"logits"})
    reads: ClassVar[Literal["logits", "probabilities"]] = "logits"
    """What it makes of the teacher's logits; `probabilities` at its temperature suffice for a cache of the largest."""
    needs_teacher: ClassVar[bool] = True
    per_sample: ClassVar[bool] = True
    relational: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    needs_input_grad: ClassVar[bool] = False
    dense: ClassVar[bool] = False  # takes logits (B, C, H, W) and labels (B, H, W), which the others do not
    undecayed: ClassVar[tuple[str, ...]] = ()
    """How the names of its parameters begin that never take weight decay, such as variances."""

    def __init__(self, config: Any, shapes: Shapes) -> None:
        super().__init__()
        self.config = config
        self.shapes = shapes

    @classmethod
    def temperatures(cls, config: Any) -> tuple[float, float]:
        """At which it softens the teacher's logits, and the student's: its option `temperature`, else 1."""
        return (float(getattr(config, "temperature", 1.0)),) * 2

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Return the loss, (B,) or (); computed in fp32 whatever the autocast."""
        raise NotImplementedError


class Modifier(nn.Module):
    """Changes what a term sees (`before`), weighs its values (`after`), or picks its samples (`mask`)."""

    class Config(PluginConfig):
        """Options, with the defaults of the source."""

    revision: ClassVar[int] = 1
    reads: ClassVar[Literal["logits", "probabilities", "nothing"]] = "nothing"
    needs_features: ClassVar[bool] = False
    """Of the student: a term that has it names taps."""
    needs_teacher: ClassVar[bool] = False
    judges_labels: ClassVar[bool] = False  # reads the one label of a sample: refused where views are mixed
    selects: ClassVar[bool] = False
    normalise: Literal["batch", "selected"] = "batch"  # divides a sum over picked samples: all ranks' batch, or picks

    def __init__(self, config: Any, shapes: Shapes) -> None:
        super().__init__()
        self.config = config
        self.shapes = shapes

    def mask(self, teacher: Outputs | None, batch: Batch) -> Bool[Tensor, "B"]:
        """Which samples it picks, by the teacher's answer before any modifier; asked where it `selects`."""
        raise NotImplementedError

    def before(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Outputs, Outputs | None]:
        """Change what the loss sees; the default changes nothing."""
        return student, teacher

    def after(self, values: Float[Tensor, "B"], batch: Batch) -> Float[Tensor, "B"]:
        """Weigh the values per sample; the default changes nothing."""
        return values


@dataclass(frozen=True)
class Term:
    """A loss with its weight, modifiers and the teacher it listens to, as a strategy receives it."""

    id: str
    loss: Loss
    weight: Callable[[int], float]
    """Weight at a step, never below 0."""
    teacher: str | None = None
    modifiers: Sequence[Modifier] = ()
    student_taps: Sequence[int] = ()
    """Which of the student's features this term sees, in order."""
    teacher_taps: Sequence[int] = ()
    temperatures: tuple[float, float] = (1.0, 1.0)
    """At which it softens the teacher's logits, and the student's."""


class Weighted(NamedTuple):
    """One term at one step."""

    id: str
    weight: float
    value: Float[Tensor, ""]


@dataclass(frozen=True)
class Losses:
    """The value of one pass on one rank's batch."""

    total: Float[Tensor, ""]
    """What is differentiated: the sum of weighted terms, a mean over the global batch once ranks are averaged."""
    terms: dict[str, Float[Tensor, ""]]
    """Each term's unweighted mean, detached: for metrics."""
    figures: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """What else is worth watching, detached, by the names in `Strategy.figures`."""


class Strategy(nn.Module):
    """The one trained module: the student and every trainable part of its terms."""

    class Config(PluginConfig):
        """Options, with the defaults of the source."""

    revision: ClassVar[int] = 1
    student: nn.Module
    passes: tuple[str, ...] = ("main",)
    """Forward-and-update rounds on each batch, in order."""
    most_zero_stage: ClassVar[Literal[0, 1, 2, 3]] = 3
    """How far its state can be sharded: 0 says that parts train in turns, the same ones on all ranks."""
    figures: Sequence[str] = ()
    """What it measures besides its terms, at every step in one of its passes: logged as train/NAME, a mean."""
    beside: Sequence[str] = ()
    """What of `evaluated` has an accuracy of its own: measured with the student's, as SPLIT/top1_of/NAME."""

    def evaluated(self) -> nn.Module:
        """What answers held-out images with Outputs: the student, which is what is exported in any case."""
        return self.student

    @classmethod
    def build(cls, student: nn.Module, passes: Mapping[str, Sequence[Term]], config: Any, stage: Any) -> Strategy:
        """Make it for a stage, of which `stage` is a `nn.stage_parts.StageParts`. Raises: ConfigError, ShapeError."""
        return cls(student, passes)

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Return the losses of one pass; called through the engine only."""
        raise NotImplementedError

    def weighted(self, batch: Batch, taught: Taught, pass_: str) -> list[Weighted]:
        """Return the terms of one pass one by one, for a look at what each contributes."""
        raise NotImplementedError

    def picked(self, batch: Batch, taught: Taught) -> dict[str, Int64[Tensor, ""]]:
        """How many of this rank's samples count, in each pass that could be left without any."""
        return {}

    def rehearse(self, batch: Batch, taught: Taught, pass_: str) -> list[Tensor]:
        """Totals of one pass, one for each way that a step can go: what none of them reaches will never train."""
        return [self(batch, taught, pass_).total]

    def recalibration(self, step: int) -> int:
        """Batches that measure the student's BatchNorm anew to be evaluated after `step` steps; 0: as it is."""
        return 0


@runtime_checkable
class Engine(Protocol):
    """Runs a strategy on this stage's ranks; equal global loss gives equal updates on every engine."""

    passes: tuple[str, ...]
    unwrapped: Strategy
    """For evaluation and export only: training must go through `forward`."""
    left_out: bool
    """Whether the last update was left out because its gradient was not finite (`on_nonfinite: skip`)."""

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""

    def micro(self, index: int) -> AbstractContextManager[None]:
        """Enter micro-batch `index` of the accumulation: gradients are reduced and applied on the last."""

    def idle(self, batch: Batch, taught: Taught) -> Container[str]:
        """Which passes over a batch no rank has a sample for, to be left out; called by all ranks before the first."""

    def forward(self, batch: Batch, taught: Taught, pass_: str) -> Losses:
        """Run one pass under the stage's precision."""

    def update(self, loss: Tensor) -> None:
        """Differentiate; on the last micro-batch clip and apply one optimizer update."""

    def end_step(self, step: int) -> None:
        """Close a step (all passes done): EMA and the learning rate of step + 1."""

    def averaged(self) -> AbstractContextManager[None]:
        """Hold the EMA weights, where EMA is on, in `unwrapped`, whole on every rank; called by all ranks."""

    def save(self, folder: Path) -> None:
        """Write everything that training state means here; called by all ranks."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; called by all ranks. Raises: CheckpointError."""


@runtime_checkable
class Tracker(Protocol):
    """Takes metrics of one stage without ever blocking or failing training."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> int:
        """Make everything durable; returns the spool's length in bytes."""

    def close(self) -> None: ...
