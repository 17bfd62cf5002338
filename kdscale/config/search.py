"""A `sweep` section that is a search: its trials are suggested one after the other by what earlier ones came to.

sweep:
  method: optuna
  trials: 50
  metric: val/top1
  space: {train.lr: {loguniform: [0.001, 0.3]}, stages.student.losses.kd.temperature: [1, 2, 4, 8]}
  seed: [0, 1]               a suggestion then counts by its mean over these
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from kdscale.config.axes import space_of
from kdscale.config.complaints import KeyedError, validated
from kdscale.config.sections import Model
from kdscale.config.space import Dimension
from kdscale.errors import ConfigError

__all__ = ["PruneConfig", "SamplerConfig", "SearchConfig", "is_search", "search_of"]

BESIDE = ("seed",)
"""Axes that a search may have beside its space: what is averaged over."""


class SamplerConfig(Model):
    """Who suggests."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0)
    startup: PositiveInt = 10
    """Trials that are drawn at random before TPE learns from them."""


class PruneConfig(Model):
    """Which trials are stopped early: those whose best figure so far is behind the finished ones' at that epoch."""

    percentile: float = Field(50.0, gt=0, lt=100)
    """How many of the finished trials in a hundred, the best ones, a trial has to keep up with; 50 is their median."""
    after_epochs: PositiveInt | None = None
    """Epochs that every trial gets; by default a quarter of its stage's."""
    after_trials: PositiveInt = 5
    """Finished trials before any is stopped."""


class SearchConfig(Model):
    """The settings of a search, as they stand in `sweep`."""

    method: Literal["optuna"]
    trials: PositiveInt
    metric: str
    space: dict[str, Any] = Field(min_length=1)
    direction: Literal["maximize", "minimize"] | None = None
    """By default what the figure's nature says."""
    sampler: SamplerConfig = SamplerConfig()
    prune: PruneConfig | None = PruneConfig()
    parallel: PositiveInt = 1
    """Trials under way at once."""
    stage: str | None = None
    """Whose figure it is; by default the stage that the trial is about."""

    @field_validator("sampler", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("prune", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """What each key of the space may be."""
        return space_of(self.space, "sweep")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another search; how many trials and how many at once does not."""
        return self.model_dump(mode="json", include={"metric", "space", "direction", "sampler", "stage"})

    def corners(self) -> dict[str, dict[str, Any]]:
        """Suggestions that between them show every choice, and both ends of every range."""
        dimensions = self.dimensions
        many = max(one.corners for one in dimensions.values())
        return {f"corner{n}": {key: one.corner(n) for key, one in dimensions.items()} for n in range(many)}


def is_search(section: Mapping[str, Any]) -> bool:
    """Whether a `sweep` section is a search: an axis called `method` is a mapping or a list."""
    return isinstance(section.get("method"), str)


def search_of(section: Mapping[str, Any], place: Callable[[str], str]) -> tuple[SearchConfig, dict[str, Any]]:
    """The settings of a search, and the axes beside its space.

    Args:
        section: `sweep`.
        place: `file:line` of a key within it.

    Raises:
        ConfigError: a setting that there is not or that does not fit, an axis that a search cannot average over.
    """
    own = {key: value for key, value in section.items() if key in SearchConfig.model_fields}
    for problem in itertools.chain(_of_method(section), _of_axes(section)):
        raise ConfigError(f"{place(problem.key)}: sweep.{problem.key}: {problem.what}")
    try:
        search = validated(SearchConfig, own)
    except KeyedError as error:
        raise ConfigError(f"{place(error.key)}: sweep.{error.key}: {error.what}") from error
    space_of(search.space, f"{place('space')}: sweep")
    return search, {key: value for key, value in section.items() if key not in own}


def _of_method(section: Mapping[str, Any]) -> Iterator[KeyedError]:
    if section["method"] != "optuna":
        yield KeyedError(
            "method",
            f"{section['method']!r} is no search: say optuna; an axis called method is a mapping of named patches",
        )


def _of_axes(section: Mapping[str, Any]) -> Iterator[KeyedError]:
    for key in section:
        if key in ("zip", "random", "exclude"):
            yield KeyedError(key, "a search makes its trials itself; take this out, or take out method: optuna")
        elif key not in SearchConfig.model_fields and key not in BESIDE:
            yield KeyedError(
                key,
                f"no setting of a search ({', '.join(SearchConfig.model_fields)}), and beside its space only seed may "
                "be swept, over which a suggestion is averaged; put it into sweep.space",
            )
