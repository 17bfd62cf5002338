"""KEY=VALUE from the command line, and the points that axes of a sweep consist of.

KEY=VALUE            sets            KEY=A,B   KEY=range(N)   sweeps            KEY=[A,B]   is a list
stages.student.losses.kd.weight      a list's item by its id, its name or its number
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdscale.config.merging import Layer
from kdscale.config.parsing import parse_value
from kdscale.errors import ConfigError

__all__ = ["FLAG", "Axis", "Override", "Point", "label", "parse_override", "range_of"]

FLAG = "command line"


@dataclass(frozen=True, eq=False)
class Point:
    """One value of an axis: its label and what it changes."""

    label: str
    layers: tuple[Layer, ...]
    """Fragments, then the point's own keys, each laid over what is there."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What it says it changes, by dotted key; of a fragment only the axis's own name."""

    def applied(self, layer: Layer) -> Layer:
        """The config with this point's changes. Raises: ConfigError for a key that leads nowhere."""
        for one in self.layers:
            layer = layer.under(one)
        return layer


@dataclass(frozen=True)
class Axis:
    """A named axis of a sweep."""

    name: str
    points: list[Point]
    keys: frozenset[str] = frozenset()
    """Keys whose values it goes through; none for named patches, which are applied first."""


@dataclass(frozen=True)
class Override:
    """One KEY=VALUE as it was typed."""

    key: str
    values: list[Any]
    text: str
    sweeps: bool


def parse_override(text: str) -> Override:
    """Split KEY=VALUE into its key and one value, or the several that it sweeps.

    Raises:
        ConfigError: there is no `=`, or the value is no YAML.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{FLAG}: {text}: say KEY=VALUE, with a dotted key such as train.lr")
    where = f"{FLAG}: {text}"
    if value.startswith("range("):
        return Override(key, range_of(value, where), text, sweeps=True)
    parts = _split_outside_brackets(value)
    try:
        values = [parse_value(part) for part in parts]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return Override(key, values, text, sweeps=len(values) > 1)


def range_of(text: str, where: str) -> list[int]:
    """The numbers of `range(STOP)`, `range(START, STOP)` or `range(START, STOP, STEP)`. Raises: ConfigError."""
    try:
        if not text.endswith(")"):
            raise ValueError(text)
        numbers = list(range(*(int(part) for part in text.removeprefix("range(").removesuffix(")").split(","))))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {text}: say range(STOP) or range(START, STOP[, STEP])") from error
    if not numbers:
        raise ConfigError(f"{where}: {text} holds no number")
    return numbers


def label(value: Any) -> str:
    """A value as the name of a trial."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(label, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{label(one)}" for key, one in value.items()) + "}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def flattened(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key: plain mappings are gone into, what a dotted key sets is one value."""
    for key, value in values.items():
        path = f"{at}.{key}" if at else str(key)
        if isinstance(value, Mapping) and value and "." not in key:
            yield from flattened(value, path)
        else:
            yield path, value


def _split_outside_brackets(text: str) -> list[str]:
    depth, parts, quote = 0, [""], ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
