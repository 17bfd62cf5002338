"""A site's own words for what a job needs: slurm/profiles/NAME.yaml, given as `--cluster NAME.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from kdscale.errors import ConfigError

__all__ = ["Profile", "load_profile"]


class Profile(BaseModel):
    """How jobs are asked for at one site. What a stage needs is said in its `resources`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str | None = Field(None, description="whom hours are charged to")
    partition: str | None = Field(None, description="where a stage names none")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features that nodes must have")
    exclude: str | None = Field(None, description="nodes to stay away from")
    gpus: Literal["gpus-per-node", "gres"] = Field("gpus-per-node", description="how the site wants GPUs asked for")
    gpu_type: str | None = Field(None, description="such as a100")
    setup: list[str] = Field([], description="shell lines before the job, such as module load")
    signal_delay_s: PositiveInt = Field(120, description="seconds before its end that a job is told to save")
    srun_args: list[str] = Field([], description="further arguments of srun, which starts the ranks")
    sbatch: dict[str, str | int | bool] = Field({}, description="any further option of sbatch, by its long name")
    precision: Literal["bf16", "fp16", "fp32"] | None = Field(
        None, description="what train.precision: auto means there"
    )
    array_size: PositiveInt | None = Field(None, description="most tasks of an array; by default the site's own limit")
    array_parallel: PositiveInt | None = Field(None, description="tasks of an array that run at once")
    retry_after_min: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0, 5.0, 25.0],
        min_length=1,
        description="minutes before each further try after a quota, I/O or network error",
    )
    hang_after_min: PositiveFloat = Field(30.0, description="minutes without a step after which a rank hangs")
    poll_s: float = Field(10.0, ge=10.0, description="seconds between questions to the scheduler")


def load_profile(cluster: str) -> Profile:
    """The profile that `--cluster` names; `slurm` alone is a site that needs none.

    Raises:
        ConfigError: no such file, or it says something that no profile has.
    """
    if cluster == "slurm":
        return Profile()
    path = Path(cluster)
    if not path.is_file():
        raise ConfigError(f"--cluster {cluster}: local, inline, slurm, or a profile such as slurm/profiles/mine.yaml")
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text()) or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {key}: {first['msg']} (it may say: {', '.join(Profile.model_fields)})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
