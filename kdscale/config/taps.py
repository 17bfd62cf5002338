"""Which features a term compares, and in which form: a transformer's tokens as what a network of maps can learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from kdscale.config.sections import Model

__all__ = ["Tap", "TapConfig", "TapForm", "TapsConfig", "name_of"]

TapForm = Literal["map", "pooled", "cls", "tokens"]
"""Of images B, patches or positions L = H·W, width D: (B, D, H, W), (B, D), (B, D) of the class token, (B, L, D)."""


def _also_as_tap(schema: dict[str, Any]) -> None:
    schema["properties"]["tap"] = {"type": "string", "description": "the same as module"}
    del schema["required"]
    schema["oneOf"] = [{"required": [name]} for name in ("module", "tap")]


class TapConfig(Model):
    """A feature and the form it is read in; `tap: NAME` says the same as `module: NAME`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, json_schema_extra=_also_as_tap)

    module: str = Field(min_length=1, description="the model's name for it, or a module path such as blocks.8")
    as_: TapForm = Field(alias="as", description="the form; a tap without it is read as its module gives it")
    prefix: NonNegativeInt | None = Field(
        None, description="tokens before those of patches (class token, registers), where the model does not say"
    )
    grid: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="rows and columns of patches, where they are no square"
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(
        None, description="of a feature with four dimensions, where the model does not say"
    )

    @model_validator(mode="before")
    @classmethod
    def _tap_is_module(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "tap" not in raw:
            return raw
        if "module" in raw:
            raise ValueError("tap and module are two words for one thing; leave one out")
        return {"module": raw["tap"], **{key: value for key, value in raw.items() if key != "tap"}}

    @model_validator(mode="after")
    def _only_positions_have_a_grid(self) -> TapConfig:
        if self.as_ in ("pooled", "cls") and self.grid is not None:
            raise ValueError(f"grid is for as: map or tokens; {self.as_} has no positions")
        return self

    def __str__(self) -> str:
        return f"{self.module} as {self.as_}"


def _listed(value: Any) -> Any:
    """A single tap is a list of one; a mapping that says no more than a name is the name."""
    taps = value if isinstance(value, list) else [value]
    return [_named(tap) for tap in taps]


def _named(tap: Any) -> Any:
    if isinstance(tap, Mapping) and len(tap) == 1:
        return next((tap[key] for key in ("module", "tap") if key in tap), tap)
    return tap


def _branch(tap: Any) -> str:
    return "form" if isinstance(tap, Mapping | TapConfig) else "name"


Tap: TypeAlias = str | TapConfig
"""A name alone reads the feature as its module gives it."""


def name_of(tap: Tap) -> str:
    """What a tap calls its module: the model's name for it, or a path."""
    return tap if isinstance(tap, str) else tap.module


_OneTap = Annotated[Annotated[str, Tag("name")] | Annotated[TapConfig, Tag("form")], Discriminator(_branch)]
_Taps = Annotated[list[_OneTap], BeforeValidator(_listed, json_schema_input_type=list[_OneTap] | _OneTap)]


class TapsConfig(Model):
    """Which features a term compares, in order; one alone needs no list."""

    student: _Taps = Field([], description="the student's, in order")
    teacher: _Taps = Field([], description="the teacher's, one for each of the student's")
