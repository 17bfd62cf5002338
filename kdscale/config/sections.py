"""Sections of a config that every stage has: data, training, engine, resources, tracking, limits.

Each field is either part of a stage's identity (it can change the numbers in exact arithmetic, so it
enters the digest) or marked `outside()`: recorded with each attempt, never hashed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

__all__ = [
    "AugmentConfig",
    "CacheConfig",
    "DataConfig",
    "EngineConfig",
    "Jitter",
    "LimitsConfig",
    "Model",
    "PluginsConfig",
    "ResizedCrop",
    "ResourcesConfig",
    "TrackingConfig",
    "TrainConfig",
    "outside",
]


def outside(default: Any, **constraints: Any) -> Any:
    """A field outside a stage's identity."""
    return Field(default, json_schema_extra={"identity": False}, **constraints)


class Model(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# --------------------------------------------------------------------------- data


class ResizedCrop(Model):
    """Random-resized crop: area share and aspect ratio are drawn, then resized to `data.size`."""

    scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.08, 1.0), description="least and largest share of the image's area"
    )
    ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        (3 / 4, 4 / 3), description="least and largest width over height"
    )


class Jitter(Model):
    """Colour jitter: each factor is drawn from [1 - x, 1 + x]."""

    brightness: float = Field(0.0, ge=0, le=1, description="x of its factor")
    contrast: float = Field(0.0, ge=0, le=1, description="x of its factor")
    saturation: float = Field(0.0, ge=0, le=1, description="x of its factor")


class AugmentConfig(Model):
    """Operations of a training view, applied in this order; each a function of (view_seed, view, row)."""

    resized_crop: ResizedCrop | None = Field(None, description="in the place of crop")
    crop: int = Field(0, ge=0, description="random crop after padding by this many pixels")
    flip: bool = Field(False, description="mirrored left to right, every other time")
    jitter: Jitter | None = Field(None, description="of colours")
    cutout: int = Field(0, ge=0, description="side of the square set to the mean, in pixels")
    mixup: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha)")
    cutmix: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha)")

    @model_validator(mode="after")
    def _one_of_each_kind(self) -> AugmentConfig:
        if self.mixup and self.cutmix:
            raise ValueError("mixup and cutmix are alternatives: set one of them")
        if self.crop and self.resized_crop:
            raise ValueError("crop and resized_crop are alternatives: set one of them")
        return self

    @property
    def mixes(self) -> bool:
        """Whether views blend two rows."""
        return bool(self.mixup or self.cutmix)


class DataConfig(Model):
    """Which data, which rows of it, and how a training view is made."""

    name: str = Field("fashion_mnist", description="a data set; `--list datasets` has them")
    root: Path | None = outside(None, description="folder of the data; otherwise KDSCALE_DATA, then the system's")
    size: PositiveInt | None = Field(None, description="pixels a side; smaller images are padded, larger resized")
    loader: Literal["auto", "ffcv", "torch"] = outside(
        "auto", description="both make the same batches bit for bit; auto: ffcv where it is installed"
    )
    stage_to: str | None = outside(None, description="folder of a node's own disk to read from, as $SLURM_TMPDIR")
    store: Literal["raw", "jpeg"] = Field("raw", description="how the converted images lie on disk")
    store_size: PositiveInt | None = Field(None, description="pixels a side on disk, for resized_crop; default size")
    limit: PositiveInt | None = Field(None, description="training rows: a stratified nested prefix")
    limit_test: PositiveInt | None = Field(None, description="test rows: a stratified nested prefix")
    transfer: int | None = Field(
        None, ge=0, description="learn without labels: a transfer set, of the training rows beyond so many of limit's"
    )
    augment: AugmentConfig = Field(AugmentConfig(), description="how a training view differs from the picture")
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the training rows that is held out to choose by; 0: none"
    )
    split_seed: int = Field(0, description="draws the rows that are held out, and those of limit")
    view_seed: int = Field(0, description="draws the views; no function of seed, so that seeds share a cache")
    options: dict[str, Any] = Field({}, description="options of the data set itself, e.g. classes of `synthetic`")

    @field_validator("stage_to")
    @classmethod
    def _lies_on_the_node(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("/", "$", "~")):
            raise ValueError("a folder of the node: an absolute path, or one that begins with a variable")
        return value


# --------------------------------------------------------------------------- teacher cache


class CacheConfig(Model):
    """A teacher's answers kept on disk: computed once for each row and view, read by every student that may."""

    views: PositiveInt = Field(8, description="views of each row; in epoch e the student sees view e mod views")
    record: Literal["auto", "dense", "dense_fp32", "topk"] = Field(
        "auto", description="what is kept of an answer; auto: dense (fp16) up to 256 classes, topk above"
    )
    k: PositiveInt = Field(16, description="topk: the largest logits that are kept")
    residual: Literal["auto", "uniform", "ghost", "to_target", "sampled", "renorm"] = Field(
        "auto", description="topk: where the other classes' probability goes; auto: uniform up to 65,536 classes"
    )
    draws: PositiveInt = Field(16, description="sampled: classes drawn from those that are not kept")
    pooled: bool = Field(False, description="keep the teacher's pooled features too, for terms that tap `pooled`")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="the teacher's; auto: train's")
    fold: bool = Field(True, description="fold the teacher's BatchNorm into its convolutions")
    block_rows: PositiveInt = Field(512, multiple_of=16, description="records that are computed and committed at once")
    fill: Literal["stage", "on_use"] = outside(
        "stage", description="stage: by a stage of its own; on_use: by the student's processes, a view before its epoch"
    )
    parts: PositiveInt = outside(1, description="fill stages that share the work, an array on a cluster")
    shard_mb: PositiveInt = outside(1024, description="size of the files it lies in")

    @model_validator(mode="after")
    def _nothing_is_said_in_vain(self) -> CacheConfig:
        said = self.model_fields_set
        if self.record in ("dense", "dense_fp32") and said & {"k", "residual", "draws"}:
            key = sorted(said & {"k", "residual", "draws"})[0]
            raise ValueError(f"{key} is for record: topk; {self.record} keeps every logit")
        if "draws" in said and self.residual in ("uniform", "ghost", "to_target", "renorm"):
            raise ValueError(f"draws is for residual: sampled, not {self.residual}")
        if self.fill == "on_use" and self.parts > 1:
            raise ValueError("parts is for fill: stage; with on_use the student's processes fill")
        return self


# --------------------------------------------------------------------------- training


class TrainConfig(Model):
    """How a stage is optimised. A step is one global batch."""

    epochs: int = Field(10, ge=0, description="0: the network stays as it is, and is evaluated")
    batch_size: PositiveInt = Field(128, description="global: over all processes and micro-batches")
    lr: PositiveFloat = Field(0.1, description="the largest of its schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(False, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="of weights; of adamw the decoupled one")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="by which weights are updated")
    schedule: Literal["constant", "cosine", "multistep", "onecycle"] = Field(
        "cosine", description="of the learning rate, step by step"
    )
    milestones: list[float] = Field([0.5, 0.75], description="multistep: shares of the epochs, or epochs when above 1")
    gamma: float = Field(0.1, gt=0, description="multistep: factor at each milestone")
    warmup_epochs: float = Field(0.0, ge=0, description="linear; for onecycle the length of the rise")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the GPU or processor computes in it, else fp32; on a cluster its profile's",
    )
    bn: Literal["local", "sync"] = Field(
        "local", description="sync: statistics of all processes' samples; local: of each its own"
    )
    grad_clip: float | None = Field(None, gt=0, description="largest global gradient norm")
    ema: float | None = Field(None, gt=0, lt=1, description="decay a step of averaged weights")
    accumulation: PositiveInt = Field(
        1, description="micro-batches a step; losses of the whole batch refuse more than 1"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of every `ce` term that sets none")
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="what to do when a term becomes nan or inf"
    )
    compile: bool = outside(False, description="compile the student with torch.compile")
    deterministic: bool = outside(False, description="bitwise repeatable on a GPU too, at some cost")
    channels_last: bool = outside(True, description="the student's memory layout; teachers always have it")
    checkpoint_every_steps: PositiveInt = outside(500, description="how much a kill costs at most")
    log_every_steps: PositiveInt = outside(50, description="how often figures are written")
    keep_checkpoints: PositiveInt = outside(2, description="how many, the newest")


class EngineConfig(Model):
    """What runs the step, and over how many processes."""

    name: Literal["ddp", "deepspeed"] = outside("ddp", description="deepspeed needs ./install.sh deepspeed")
    processes: PositiveInt | Literal["auto"] = outside(
        "auto", description="auto: one a GPU or core, as many as divide the batch; on a cluster processes_per_node"
    )
    zero_stage: Literal[0, 1, 2, 3] = outside(0, description="of deepspeed: what is sharded")


class ResourcesConfig(Model):
    """What a stage's job asks of the cluster."""

    nodes: PositiveInt = outside(1, description="machines")
    processes_per_node: PositiveInt | None = outside(
        None, description="default: engine.processes over the nodes, 1 where that is auto"
    )
    cpus_per_process: PositiveInt = outside(1, description="cores")
    gpus_per_process: int = outside(0, ge=0, description="0: trains on the CPU")
    mem_gb: PositiveFloat | None = outside(None, description="of a node; default: what the site gives")
    time_min: PositiveInt = outside(60, description="after which the job is stopped; it goes on in its next one")
    time_floor_min: PositiveInt | None = outside(
        None, description="what it also takes, and starts sooner for (`--time-min`)"
    )
    partition: str | None = outside(None, description="default: the profile's")
    pack: PositiveInt = outside(
        1, description="stages that share one job, side by side: each has its own cores and memory, and all its GPUs"
    )

    @model_validator(mode="after")
    def _packs_lie_on_one_node(self) -> ResourcesConfig:
        if self.pack > 1 and self.nodes > 1:
            raise ValueError(f"pack: {self.pack} stages share a job on one node, and nodes is {self.nodes}")
        return self


class PluginsConfig(Model):
    """Whose code may be imported by dotted name (`birds.nets:TinyNet`)."""

    path: list[Path] = outside([], description="folders put on sys.path")
    allow: list[str] = outside([], description="top-level packages that a config may name")


class TrackingConfig(Model):
    """Where metrics go besides the stage's own spool."""

    uri: str | None = outside(None, description="MLflow server, sqlite:/// file, or off; default runs/mlflow.db")
    experiment: str = outside("kdscale", description="of MLflow")
    ship: Literal["auto", "job", "login", "never"] = outside("auto", description="who brings metrics to a server")

    @field_validator("uri", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value


class LimitsConfig(Model):
    """Bounds of a whole sweep."""

    parallel: PositiveInt | None = outside(
        None, description="stages at once: here, each on its share of cores; on a cluster, tasks of an array"
    )
    gpu_hours: PositiveFloat | None = outside(
        None, description="on a cluster: refuse what may take more, each stage for its resources.time_min"
    )
