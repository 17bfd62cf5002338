"""Changes to a config by dotted key, and the axes of a sweep that are made of them.

KEY=VALUE            sets            KEY=A,B   KEY=range(N)   sweeps            KEY=[A,B]   is a list
stages.student.losses.kd.weight      a list's item by its id (or name), or by its number
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from kdscale.config.reading import absolute_paths, merged, own_layer
from kdscale.draws import uniform
from kdscale.errors import ConfigError

__all__ = ["Axis", "Point", "apply", "axes_of", "parse_override", "set_key"]

FLAG = "command line"


@dataclass(frozen=True)
class Point:
    """One value of an axis: its label and what it changes."""

    label: str
    changes: dict[str, Any]
    """Values by dotted key, each set whole."""
    uses: tuple[dict[str, Any], ...] = ()
    """Fragments, each merged before the changes."""


@dataclass(frozen=True)
class Axis:
    """A named axis of a sweep."""

    name: str
    points: list[Point]


def parse_override(text: str) -> tuple[str, list[Any]]:
    """Split KEY=VALUE into its key and one value, or the several that it sweeps.

    Raises:
        ConfigError: there is no `=`, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{FLAG}: {text}: say KEY=VALUE")
    return key.strip(), _values(value.strip(), f"{FLAG}: {text}")


def _values(text: str, where: str) -> list[Any]:
    if text.startswith("range("):
        return _range(text, where)
    parts = _split_outside_brackets(text)
    try:
        return [yaml.safe_load(part) for part in parts]
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {text!r} is no value: {error}") from error


def _range(text: str, where: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.removeprefix("range(").removesuffix(")").split(",")]
        return list(range(*numbers))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {text}: say range(STOP) or range(START, STOP[, STEP])") from error


def _split_outside_brackets(text: str) -> list[str]:
    depth, parts, quote = 0, [""], ""
    for sign in text:
        if quote or sign in "\"'":
            quote = "" if sign == quote else (quote or sign)
        depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def set_key(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in place.

    Raises:
        ConfigError: a list has no such item, or the path leads through something that has no keys.
    """
    at: Any = values
    *path, last = key.split(".")
    for depth, part in enumerate(path):
        at = _enter(at, part, ".".join(path[:depth]), where)
    if isinstance(at, list):
        at[_index(at, last, ".".join(path), where)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise ConfigError(f"{where}: {key}: {'.'.join(path)} is {at!r} and has no keys")


def _enter(at: Any, part: str, path: str, where: str) -> Any:
    if isinstance(at, list):
        return at[_index(at, part, path, where)]
    if isinstance(at, dict):
        if at.get(part) is None:
            at[part] = {}
        return at[part]
    raise ConfigError(f"{where}: {path} is {at!r} and has no keys")


def _index(items: list[Any], part: str, path: str, where: str) -> int:
    names = [str(item.get("id") or item.get("name")) if isinstance(item, dict) else str(item) for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    near = get_close_matches(part, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names) or 'none'}"
    raise ConfigError(f"{where}: {path} has no item {part}; {hint}")


def apply(values: Mapping[str, Any], point: Point, where: str) -> dict[str, Any]:
    """The config with one point's fragments merged in and its keys set."""
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for fragment in point.uses:
        result = merged(result, copy.deepcopy(fragment))
    for key, value in point.changes.items():
        set_key(result, key, copy.deepcopy(value), where)
    return result


# --------------------------------------------------------------------------- the sweep section


def axes_of(section: Mapping[str, Any], base: Path, where: str) -> tuple[list[Axis], list[dict[str, Any]]]:
    """Read the `sweep` section: its axes, and the combinations that it leaves out.

    Raises:
        ConfigError: an axis is empty or malformed, or two have one name.
    """
    section = dict(section)
    exclude = list(section.pop("exclude", None) or [])
    axes = [_zipped(group, index, where) for index, group in enumerate(section.pop("zip", None) or [])]
    chance = section.pop("random", None)
    short = _short_names([*section])
    axes = [_axis(short[key], key, value, base, where) for key, value in section.items()] + axes
    if chance is not None:
        axes.append(_random(chance, where))
    _check_exclusions(exclude, axes, where)
    return axes, exclude


def _axis(name: str, key: str, value: Any, base: Path, where: str) -> Axis:
    if isinstance(value, str) and value.startswith("range("):
        value = _range(value, f"{where}: sweep.{key}")
    if isinstance(value, dict):
        points = [_named(label, patch, base, f"{where}: sweep.{key}.{label}") for label, patch in value.items()]
    elif isinstance(value, list):
        points = [Point(_label(one), {key: one}) for one in value]
    else:
        raise ConfigError(f"{where}: sweep.{key}: {value!r} is no axis: give a list, range(N), or named patches")
    if not points:
        raise ConfigError(f"{where}: sweep.{key}: the axis is empty")
    labels = [point.label for point in points]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{where}: sweep.{key}: a value is given twice: {', '.join(labels)}")
    return Axis(name, points)


def _named(label: Any, patch: Any, base: Path, where: str) -> Point:
    if patch is None:
        patch = {}
    if not isinstance(patch, dict):
        raise ConfigError(f"{where}: a named patch is a mapping of dotted keys, not {patch!r}")
    patch = dict(patch)
    uses = patch.pop("use", [])
    fragments = [own_layer(one, base).values for one in ([uses] if isinstance(uses, str) else uses)]
    return Point(str(label), absolute_paths(patch, base), tuple(fragments))


def _zipped(group: Mapping[str, Any], index: int, where: str) -> Axis:
    """Keys that change together, value by value."""
    columns = {
        key: _range(value, f"{where}: sweep.zip.{index}.{key}") if isinstance(value, str) else list(value)
        for key, value in group.items()
    }
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        said = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ConfigError(f"{where}: sweep.zip.{index}: zipped keys need equally many values: {said}")
    short = _short_names(list(columns))
    points = [
        Point("/".join(_label(v) for v in row), dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]
    return Axis("+".join(short.values()), points)


def _random(section: Mapping[str, Any], where: str) -> Axis:
    """Seeded draws: trial n of a space is the same however many trials there are."""
    at = f"{where}: sweep.random"
    try:
        trials, space = int(section["trials"]), dict(section["space"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{at}: say {{trials: N, seed: S, space: {{KEY: {{uniform: [A, B]}}}}}}") from error
    seed = int(section.get("seed", 0))
    points = []
    for trial in range(trials):
        drawn = {
            key: _draw(how, uniform("random", seed, trial, key), f"{at}.space.{key}") for key, how in space.items()
        }
        points.append(Point(f"t{trial}", drawn))
    return Axis("trial", points)


def _draw(how: Any, u: float, where: str) -> Any:
    kinds = "uniform: [a, b], loguniform: [a, b], integer: [a, b] or choice: [...]"
    if not isinstance(how, dict) or len(how) != 1:
        raise ConfigError(f"{where}: {how!r}: say {kinds}")
    [(kind, bounds)] = how.items()
    if kind == "choice":
        return bounds[int(u * len(bounds))]
    if kind not in ("uniform", "loguniform", "integer") or len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ConfigError(f"{where}: {how!r}: say {kinds}, with a < b")
    low, high = bounds
    if kind == "uniform":
        return low + u * (high - low)
    if kind == "integer":
        return low + int(u * (high - low + 1))
    return math.exp(math.log(low) + u * (math.log(high) - math.log(low)))


def _check_exclusions(exclude: list[dict[str, Any]], axes: Sequence[Axis], where: str) -> None:
    known = {axis.name: {point.label for point in axis.points} for axis in axes}
    for index, rule in enumerate(exclude):
        for axis, wanted in rule.items():
            at = f"{where}: sweep.exclude.{index}.{axis}"
            if axis not in known:
                raise ConfigError(f"{at}: no such axis (there are: {', '.join(known)})")
            for label in wanted if isinstance(wanted, list) else [wanted]:
                if _label(label) not in known[axis]:
                    raise ConfigError(f"{at}: {label} is no value of it ({', '.join(sorted(known[axis]))})")


def combinations(axes: Sequence[Axis], exclude: Sequence[Mapping[str, Any]]) -> list[tuple[Point, ...]]:
    """All combinations that are not excluded, the last axis fastest."""
    names = [axis.name for axis in axes]
    kept = []
    for combination in itertools.product(*(axis.points for axis in axes)):
        labels = {name: point.label for name, point in zip(names, combination, strict=True)}
        if not any(_matches(labels, rule) for rule in exclude):
            kept.append(combination)
    return kept


def _matches(labels: Mapping[str, str], rule: Mapping[str, Any]) -> bool:
    return all(
        labels[axis] in [_label(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
        for axis, wanted in rule.items()
    )


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where two would have one name."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def _label(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
