"""The language of a config file, as typed and frozen models.

Two levels: `Experiment` is one trial as the user wrote it (sweep already expanded); `StageSpec` is one
stage with everything merged into it, the unit that is planned, hashed, run and stored.

Each field is either part of a stage's identity (it can change the numbers in exact arithmetic, so it
enters the digest) or marked `outside()`: recorded with each attempt, never hashed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdscale.config.evaluation import EvalConfig, Expectation, ExportConfig
from kdscale.config.merging import called
from kdscale.config.published import PublishedFigure
from kdscale.config.sections import (
    AugmentConfig,
    CacheConfig,
    DataConfig,
    EngineConfig,
    LimitsConfig,
    Model,
    PluginsConfig,
    ResourcesConfig,
    TrackingConfig,
    TrainConfig,
    outside,
)
from kdscale.config.taps import TapsConfig

__all__ = [
    "AugmentConfig",
    "CacheConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "Expectation",
    "Experiment",
    "ExportConfig",
    "InitFrom",
    "InputConfig",
    "LimitsConfig",
    "MeanOf",
    "PluginsConfig",
    "ResourcesConfig",
    "SplitHeadConfig",
    "StageConfig",
    "StageSpec",
    "StudentConfig",
    "TapsConfig",
    "TeacherRef",
    "TermConfig",
    "TrackingConfig",
    "TrainConfig",
    "VirtualConfig",
]

Weight = float | str | dict[str, Any]
"""A number, arithmetic over `params` (replaced by its value on loading), or a schedule: arithmetic.SCHEDULES."""
MeanOf = Literal["logits", "probabilities"]
"""What an ensemble averages of its members' answers."""


# --------------------------------------------------------------------------- networks


class InputConfig(Model):
    """What a network wants to see; the loader's view is resized and normalised to it on the device."""

    size: PositiveInt | None = Field(None, description="pixels a side; default: as the data is")
    mean: list[float] | None = Field(None, description="a channel, of pixels in 0..1; default: the data's")
    std: list[float] | None = Field(None, description="a channel; default: the data's")
    channels: Literal[1, 3] | None = Field(None, description="1 or 3; default: the data's")


class SplitHeadConfig(Model):
    """A small head in the place of a network's first modules, with few bytes in its middle that one machine sends."""

    split_at: str = Field(description="tap or module path of the last module that it stands for")
    channels: PositiveInt = Field(description="of what is sent, a byte a value")
    size: PositiveInt | None = Field(None, description="positions a side of what is sent; default those of split_at")
    width: PositiveInt | None = Field(None, description="channels of its layers; default those of split_at")


class BranchesConfig(Model):
    """Further branches of a network behind a shared trunk; it answers as their gated mean."""

    count: int = Field(ge=2, le=16, description="its own among them")
    split_at: str | None = Field(None, description="tap or module that is shared last; default: last stage but one")


class StudentConfig(BaseModel):
    """A network: a model by name, its constructor's arguments as further keys, optional weights."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model: str = Field(description="its name, `torchvision:NAME`, `timm:NAME` or your own `package.module:Class`")
    weights: Path | None = outside(None, description="file to begin with, .safetensors or .pth")
    weights_key: str | None = outside(None, description="where the tensors lie in a .pth file")
    weights_hash: str | None = Field(None, description="filled in by the planner: hash of the tensors")
    strict: list[str] | bool = Field(True, description="names of parts that the weights may lack, e.g. [head]")
    classes: PositiveInt | None = Field(
        None, description="logits of the network, where they are not the data's classes"
    )
    class_names: Path | list[str] | None = Field(
        None, description="the network's classes in its order, or a file of them"
    )
    class_map: Path | list[int] | None = Field(
        None, description="the logit of each of the data's classes, or a file of them"
    )
    input: InputConfig = Field(InputConfig(), description="what it wants to see")
    taps: dict[str, str] | None = Field(None, description="names for module paths of a foreign model")
    split_head: SplitHeadConfig | None = Field(None, description="what stands for its first modules, with a wire in it")
    branches: BranchesConfig | None = Field(None, description="makes it an ensemble on one trunk")

    @model_validator(mode="after")
    def _one_change_of_the_model(self) -> StudentConfig:
        if self.split_head is not None and self.branches is not None:
            raise ValueError("a student has a split_head or branches, not both")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The model's own constructor arguments."""
        return dict(self.model_extra or {})


class VirtualConfig(Model):
    """A teacher without a network, which is sure of every label to the same degree."""

    correct: float = Field(0.99, gt=0, lt=1, description="probability of the label; the others share what is left")
    logits: Literal["probabilities", "logarithms"] = Field(
        "probabilities", description="what its logits are; of the logarithms softmax gives the probabilities back"
    )


class TeacherRef(Model):
    """A finished stage that answers each batch, the mean of several other teachers of the same stage, or labels."""

    from_: str | None = Field(None, alias="from", description="STAGE or STAGE@last|best|epoch:n|acc:x")
    cache: CacheConfig | None = Field(None, description="answers from disk instead of a live network")
    mean: list[str] | None = Field(None, description="an ensemble: names of other teachers of this stage")
    of: MeanOf = Field("logits", description="what is averaged; probabilities: at each term's temperature")
    weights: list[Annotated[PositiveFloat, AllowInfNan(False)]] | None = Field(
        None, description="of the members in the mean, in their order; scaled to add up to 1, default equal"
    )
    virtual: VirtualConfig | None = Field(None, description="answers from the labels alone: no network is asked")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @field_validator("cache", mode="before")
    @classmethod
    def _true_is_a_cache_as_it_comes(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @property
    def shares(self) -> dict[str, float]:
        """Members of an ensemble with their parts of the mean, which add up to 1.

        Neither the order in the config nor the weights' scale is seen in it, to the last digit.
        """
        members = self.mean or []
        weights = self.weights or [1.0] * len(members)
        whole = math.fsum(weights)
        return {name: float(f"{weight / whole:.12g}") for name, weight in sorted(zip(members, weights, strict=True))}


class ModifierConfig(BaseModel):
    """A modifier by name, its options as further keys."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(description="a modifier; `--list modifiers` has them")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TermConfig(BaseModel):
    """One term of the loss; the loss's own options are further keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(description="a loss; `--list losses` has them")
    id: str = Field("", description="its name in metrics and overrides; default: the loss's name")
    weight: Weight = Field(1.0, description="a number, arithmetic over `params`, or a schedule over the steps")
    teacher: str | None = Field(None, description="whom it listens to; default: the stage's only one")
    taps: TapsConfig | None = Field(None, description="which features it compares")
    modifiers: list[ModifierConfig] = Field([], description="in their order")
    init_from: str | None = Field(None, description="STAGE or STAGE#TERM whose trained parts this term's start from")
    lr: float | None = Field(None, description="learning rate of the term's own parameters, as a factor of train.lr")
    weight_decay: float | None = Field(None, description="of the term's own parameters; default: train's")

    @model_validator(mode="before")
    @classmethod
    def _id_defaults_to_name(cls, raw: Any) -> Any:
        return {**raw, "id": called(raw)} if isinstance(raw, dict) and "name" in raw else raw

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own options."""
        return dict(self.model_extra or {})


class InitFrom(Model):
    """Start from another stage's weights."""

    from_: str = Field(alias="from", description="STAGE or STAGE@last|best|epoch:n|acc:x")
    skip: list[str] = Field([], description="parts that start fresh, e.g. [head]")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


# --------------------------------------------------------------------------- stage and experiment


class StageConfig(Model):
    """One stage as the user wrote it; train, data, engine, resources and eval merge over the top level's."""

    student: StudentConfig | None = Field(
        None, description="default: the network of the stage that it starts from, or of the one that starts from it"
    )
    teachers: dict[str, TeacherRef] = Field({}, description="by the name that terms call them")
    losses: list[TermConfig] | None = Field(None, description="the terms of its one pass")
    passes: dict[str, list[TermConfig]] | None = Field(
        None, description="by name, several updates a batch, in this order"
    )
    strategy: str = Field("distill", description="what is trained, and how; `--list strategies` has them")
    options: dict[str, Any] = Field({}, description="of the strategy")
    drop: int = Field(
        0, ge=0, description="of a pass's terms that hear a teacher so many, drawn anew each step, weigh nothing"
    )
    init_from: InitFrom | str | None = Field(None, description="a stage whose weights it begins with")
    init_skip: list[str] = Field([], description="parts that begin anew, as [head]")
    train: dict[str, Any] = Field({}, description="over the top level's, key by key")
    train_only: list[str] | None = Field(None, description="paths of modules; what else the student has is frozen")
    data: dict[str, Any] = Field({}, description="over the top level's, key by key")
    seed: int | None = Field(None, description="of its initial weights, order and draws; default: the trial's")
    engine: dict[str, Any] = Field({}, description="over the top level's, key by key")
    resources: dict[str, Any] = Field({}, description="over the top level's, key by key")
    eval: dict[str, Any] = Field({}, description="over the top level's, key by key")
    export: ExportConfig | None = outside(None, description="written when the sweep has ended")
    expect: Expectation | None = Field(None, description="what must come out")

    @model_validator(mode="after")
    def _terms_in_one_place(self) -> StageConfig:
        if self.losses is not None and self.passes is not None:
            raise ValueError("a stage has losses (one pass) or passes, not both")
        return self


class Experiment(Model):
    """One trial of a sweep: the file with its bases, overrides and axis values merged in."""

    name: str = Field("experiment", description="of the sweep, as commands take it")
    seed: int = Field(0, description="of every stage that pins none")
    protocol: Literal["standard", "paper"] = Field(
        "standard", description="paper: the best epoch on test too, marked as biased"
    )
    params: dict[str, float] = Field({}, description="numbers that weights are worked out from")
    data: DataConfig = Field(DataConfig(), description="of every stage")
    train: TrainConfig = Field(TrainConfig(), description="of every stage")
    engine: EngineConfig = Field(EngineConfig(), description="of every stage")
    resources: ResourcesConfig = Field(ResourcesConfig(), description="of every stage")
    eval: EvalConfig = Field(EvalConfig(), description="of every stage: what is measured once it is trained")
    tracking: TrackingConfig = Field(TrackingConfig(), description="where metrics go")
    limits: LimitsConfig = Field(LimitsConfig(), description="of the sweep")
    plugins: PluginsConfig = Field(PluginsConfig(), description="your own code")
    cite: dict[str, str] = outside({}, description="BibTeX entries of the recipe, by any name, for report.py --bibtex")
    stages: Annotated[dict[str, StageConfig], Field(min_length=1)] = Field(
        description="by name; who teaches whom decides their order"
    )
    expect: list[PublishedFigure] = outside([], description="published figures, printed beside what comes out")


class StageSpec(Model):
    """One stage with everything resolved: what is planned, hashed, stored in stage.yaml and run."""

    name: str = outside(...)
    student: StudentConfig
    teachers: dict[str, TeacherRef] = {}
    passes: dict[str, list[TermConfig]] = {}
    strategy: str = "distill"
    options: dict[str, Any] = {}
    drop: int = 0
    init_from: InitFrom | None = None
    train: TrainConfig = TrainConfig()
    train_only: list[str] | None = None
    data: DataConfig = DataConfig()
    seed: int = 0
    engine: EngineConfig = outside(EngineConfig())
    resources: ResourcesConfig = outside(ResourcesConfig())
    tracking: TrackingConfig = outside(TrackingConfig())
    plugins: PluginsConfig = outside(PluginsConfig())
    protocol: Literal["standard", "paper"] = outside("standard")
    eval: EvalConfig = outside(EvalConfig())
    export: ExportConfig | None = outside(None)
    expect: Expectation | None = outside(None)
    variant: dict[str, Any] = Field({}, description="swept keys that lie outside the identity")

    @property
    def terms(self) -> list[TermConfig]:
        """Those of all passes, in order."""
        return [term for terms in self.passes.values() for term in terms]

    @property
    def terms_begun(self) -> list[TermConfig]:
        """Those whose trained parts start from what another stage's term has learnt."""
        return [term for term in self.terms if term.init_from is not None]
