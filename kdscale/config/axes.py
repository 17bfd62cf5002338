"""The `sweep` section: what its axes go through, and which combinations are left out.

sweep:
  seed: range(3)                                          values of a key: a list, or range(...)
  student: {small: {...}, large: {use: FILE, ...}}        named patches; `use` merges a fragment first
  zip: [{train.lr: [...], train.batch_size: [...]}]       keys that change together
  random: {trials: 20, seed: 0, space: {train.lr: {loguniform: [1e-3, 1]}}}
  exclude: [{student: large, seed: [1, 2]}]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from kdscale.config.merging import Layer
from kdscale.config.patches import FLAG, Axis, Point, flattened, label, range_of
from kdscale.config.reading import fragment
from kdscale.config.space import Dimension, dimension
from kdscale.draws import uniform
from kdscale.errors import ConfigError

__all__ = ["Exclusion", "axes_of", "combinations", "exclusions_of", "space_of", "suggested_axis"]

Exclusion = Mapping[str, Sequence[str]]
"""Labels by axis; a combination that has one of each is left out."""

WHOLE_SWEEP = ("name", "protocol", "tracking", "limits", "plugins", "expect")
"""Sections that one sweep has one of."""

Place = Callable[[str], str]
"""Where a key of the section stands: its path within it to `file:line`."""


def axes_of(section: Mapping[str, Any], place: Place) -> list[Axis]:
    """Read the axes of a `sweep` section, in its order.

    Raises:
        ConfigError: an axis is empty or malformed, a fragment is missing, or a key may not be swept.
    """
    keys = [key for key in section if key not in ("zip", "random", "exclude")]
    names = _short_names(keys)
    axes: list[Axis] = []
    for key, value in section.items():
        where = f"{place(key)}: sweep.{key}"
        if key == "zip":
            axes += [_zipped(one, f"{where}.{i}") for i, one in enumerate(_list_of_mappings(value, where))]
        elif key == "random":
            axes.append(_random(value, where))
        elif key == "exclude":
            continue
        elif isinstance(value, Mapping):
            axes.append(_patches(key, value, place))
        else:
            axes.append(_values(names[key], key, value, where))
    return axes


def exclusions_of(
    section: Mapping[str, Any], axes: Sequence[Axis], place: Place, *, lenient: bool = False
) -> list[Exclusion]:
    """Read `exclude`.

    Args:
        section: the `sweep` section.
        axes: what it goes through.
        place: of its keys.
        lenient: the command line changed the axes, so that a rule may speak of what is not swept any more.

    Raises:
        ConfigError: there is no such axis or value.
    """
    known = {axis.name: [point.label for point in axis.points] for axis in axes}
    rules: list[Exclusion] = []
    for index, rule in enumerate(_list_of_mappings(section.get("exclude") or [], f"{place('exclude')}: sweep.exclude")):
        at = f"{place(f'exclude.{index}')}: sweep.exclude.{index}"
        found = {
            axis: [label(v) for v in (wanted if isinstance(wanted, list) else [wanted])]
            for axis, wanted in rule.items()
        }
        wrong = list(_unknown(found, known, at))
        if wrong and not lenient:
            raise ConfigError(wrong[0])
        if found.keys() <= known.keys():
            rules.append(found)
    return rules


def _unknown(rule: Exclusion, known: Mapping[str, list[str]], at: str) -> Iterator[str]:
    for axis, labels in rule.items():
        if axis not in known:
            yield f"{at}.{axis}: no such axis{_hint(axis, list(known))}"
        else:
            yield from (
                f"{at}.{axis}: {one} is no value of it{_hint(one, known[axis])}"
                for one in labels
                if one not in known[axis]
            )


def combinations(axes: Sequence[Axis], exclude: Sequence[Exclusion]) -> Iterator[tuple[Point, ...]]:
    """All combinations that are not excluded, the last axis fastest."""
    names = [axis.name for axis in axes]
    for combination in itertools.product(*(axis.points for axis in axes)):
        labels = {name: point.label for name, point in zip(names, combination, strict=True)}
        if not any(all(labels[axis] in wanted for axis, wanted in rule.items()) for rule in exclude):
            yield combination


# --------------------------------------------------------------------------- kinds of axes


def _values(name: str, key: str, value: Any, where: str) -> Axis:
    _may_be_swept(key, where)
    points = [_setting(label(one), {key: one}, where) for one in _column(value, where)]
    return _checked(Axis(name, points, frozenset([key])), where)


def _patches(name: str, value: Mapping[str, Any], place: Place) -> Axis:
    points = [_patch(name, str(one), patch, place) for one, patch in value.items()]
    return _checked(Axis(name, points), f"{place(name)}: sweep.{name}")


def _patch(axis: str, name: str, patch: Any, place: Place) -> Point:
    where = f"{place(f'{axis}.{name}')}: sweep.{axis}.{name}"
    if not isinstance(patch, (Mapping, type(None))):
        raise ConfigError(f"{where}: a named patch is a mapping of keys, not {patch!r}")
    own = dict(patch or {})
    uses = own.pop("use", None) or []
    try:
        layers = [fragment(str(one)) for one in (uses if isinstance(uses, list) else [uses])]
    except ConfigError as error:
        raise ConfigError(f"{where}.use: {error}") from error
    for layer in (*layers, Layer(own)):
        for key in layer.values:
            _may_be_swept(key, where)
    changes = dict(flattened(own)) | ({axis: name} if layers else {})
    sources = {key: f"{place(f'{axis}.{name}.{key}')} (sweep.{axis}.{name})" for key in _every_key(own)}
    return Point(name, (*layers, Layer(own, sources)), changes)


def _zipped(group: Mapping[str, Any], where: str) -> Axis:
    """Keys that change together, value by value."""
    columns = {key: _column(value, f"{where}.{key}") for key, value in group.items()}
    for key in columns:
        _may_be_swept(key, where)
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        said = ", ".join(f"{key} has {n}" for key, n in lengths.items()) or "there is no key"
        raise ConfigError(f"{where}: zipped keys need equally many values: {said}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    points = [_setting("/".join(map(label, row.values())), row, where) for row in rows]
    return _checked(Axis("+".join(_short_names(list(columns)).values()), points, frozenset(columns)), where)


def _random(section: Any, where: str) -> Axis:
    """Seeded draws: trial n of a space is the same however many trials there are, and whatever else is drawn."""
    say = f"{where}: say {{trials: N, seed: S, space: {{KEY: {{uniform: [A, B]}}}}}}"
    if not isinstance(section, Mapping) or not set(section) <= {"trials", "seed", "space"}:
        raise ConfigError(say)
    trials, seed, space = section.get("trials"), section.get("seed", 0), section.get("space")
    if (
        not isinstance(trials, int)
        or not isinstance(seed, int)
        or trials < 1
        or not isinstance(space, Mapping)
        or not space
    ):
        raise ConfigError(say)
    dimensions = space_of(space, where)
    points = []
    for trial in range(trials):
        drawn = {key: one.at(uniform("random", seed, trial, key)) for key, one in dimensions.items()}
        points.append(_setting(f"t{trial}", drawn, where))
    return Axis("trial", points, frozenset(space))


def space_of(space: Mapping[str, Any], where: str) -> dict[str, Dimension]:
    """Read what each key of a space may be set to. Raises: ConfigError."""
    for key in space:
        _may_be_swept(key, f"{where}.space")
    return {key: dimension(how, f"{where}.space.{key}") for key, how in space.items()}


def suggested_axis(suggested: Mapping[str, Mapping[str, Any]], keys: Iterable[str], where: str) -> Axis:
    """The axis `trial` of a search: what was suggested, by the trials' labels."""
    return Axis("trial", [_setting(name, values, where) for name, values in suggested.items()], frozenset(keys))


# --------------------------------------------------------------------------- pieces


def _setting(name: str, values: Mapping[str, Any], where: str) -> Point:
    """A point that sets keys, each whole; `where` is `file:line: sweep.KEY`, or the command line."""
    file, _, key = where.partition(": ")
    source = file if file == FLAG else f"{file} ({key})"
    layer = Layer(dict(values), dict.fromkeys(_every_key(values), source))
    return Point(name, (layer,), dict(values))


def _every_key(values: Any, at: str = "") -> Iterator[str]:
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        path = f"{at}.{key}" if at else str(key)
        yield path
        yield from _every_key(value, path)


def _column(value: Any, where: str) -> list[Any]:
    if isinstance(value, str) and value.startswith("range("):
        return range_of(value, where)
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {value!r} is no axis: give a list, range(N), or named patches")
    return value


def _checked(axis: Axis, where: str) -> Axis:
    labels = [point.label for point in axis.points]
    if not labels:
        raise ConfigError(f"{where}: the axis is empty")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{where}: a value is given twice: {', '.join(labels)}")
    return axis


def _may_be_swept(key: str, where: str) -> None:
    if key.partition(".")[0] in WHOLE_SWEEP:
        raise ConfigError(f"{where}: {key} belongs to the whole sweep and cannot differ between its trials")


def _list_of_mappings(value: Any, where: str) -> list[Mapping[str, Any]]:
    found = [value] if isinstance(value, Mapping) else value
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ConfigError(f"{where}: a list of mappings is meant, such as [{{KEY: ...}}]")
    return found


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where two would have one name."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def _hint(part: str, names: list[str]) -> str:
    near = get_close_matches(part, names, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(names) or 'none'}"
