"""Laying one mapping over another, and setting a dotted key, with the place that each key came from.

    train: {lr: 0.1}          a plain key merges with what lies underneath, mapping by mapping
    train.lr: 0.1             a dotted key sets what it names, whole
    losses: [...]             a list replaces a list
    teachers: {}              an empty mapping empties
    stages: {assistant: ~}    null takes a stage, a teacher, a pass or an axis out
    student: {model: wrn}     another model replaces the block: its arguments are not those of the one underneath
    data: {name: mnist}       another data set drops the options and the folder of the one underneath

Nothing is changed in place: trials of a sweep share what they have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from kdscale.errors import ConfigError

__all__ = ["Layer", "called", "index_of", "merged"]

_OPTIONS_OF = {"model": ("*",), "name": ("options", "root"), "strategy": ("options",)}
"""Which keys beside a choice are meant for that choice alone."""

_REMOVABLE = re.compile(r"sweep|stages|stages\.[^.]+\.(teachers|passes)")
"""Mappings of which null takes an entry out."""


@dataclass(frozen=True)
class Layer:
    """A mapping and where each dotted key of it was set."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """`file:line` or `command line`, by dotted key; items of lists by number."""

    def under(self, other: Layer) -> Layer:
        """This layer with `other` laid over it: its plain keys merged, then its dotted keys set, in order.

        Raises:
            ConfigError: a dotted key leads nowhere.
        """
        result = self
        for key, value in sorted(other.values.items(), key=lambda pair: "." in pair[0]):
            own = {k: v for k, v in other.sources.items() if k == key or k.startswith(f"{key}.")}
            result = result.with_key(key, value, own) if "." in key else result._merging(key, value, own)
        return result

    def _merging(self, key: str, value: Any, own: Mapping[str, str]) -> Layer:
        sources = dict(self.sources)
        values = _merge(self.values, {key: value}, "", sources)
        return Layer(values, {**sources, **own})

    def with_key(self, key: str, value: Any, sources: Mapping[str, str]) -> Layer:
        """This layer with one dotted key set, whole.

        Args:
            key: dotted; a list's item by its id, its name or its number.
            value: what it is set to; null takes an entry of a named mapping out.
            sources: places of the key and of those under it.

        Raises:
            ConfigError: a list has no such item, or the path leads through something that has no keys.
        """
        path: list[str] = []
        values = _with(self.values, key.split("."), value, path, sources.get(key, key))
        there = ".".join(path)
        kept = {k: v for k, v in self.sources.items() if k != there and not k.startswith(f"{there}.")}
        moved = {there + k[len(key) :]: v for k, v in sources.items()}
        return Layer(values, kept | moved)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another."""
    result: dict[str, Any] = _merge(dict(under), dict(over), "", {})
    return result


def index_of(items: list[Any], part: str) -> int | None:
    """Number of the list's item that is called `part` by id, by name or by number; None when there is none."""
    names = _names(items)
    if part in names:
        return names.index(part)
    return int(part) if part.isdigit() and int(part) < len(items) else None


def _names(items: list[Any]) -> list[str]:
    return [called(item) if isinstance(item, dict) else str(item) for item in items]


def called(item: Mapping[str, Any]) -> str:
    """What an item of a list is called: its id, else its name; that of a user's own class without its module."""
    return str(item.get("id") or str(item.get("name")).rpartition(":")[2])


def _merge(under: Any, over: Any, at: str, sources: dict[str, str]) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict) or (at and not over):
        _forget(sources, at)
        return over
    result = dict(under)
    for key in _belongs_to_another(under, over):
        del result[key]
        _forget(sources, f"{at}.{key}" if at else key)
    for key, value in over.items():
        path = f"{at}.{key}" if at else str(key)
        if value is None and _REMOVABLE.fullmatch(at):
            result.pop(key, None)
            _forget(sources, path)
        else:
            result[key] = _merge(result.get(key, {}), value, path, sources)
    return result


def _forget(sources: dict[str, str], at: str) -> None:
    for key in [k for k in sources if k == at or k.startswith(f"{at}.")]:
        del sources[key]


def _belongs_to_another(under: Mapping[str, Any], over: Mapping[str, Any]) -> list[str]:
    """Keys underneath that are options of a model, data set or strategy which `over` replaces by another."""
    changed = {kind for kind in _OPTIONS_OF if kind in under and kind in over and under[kind] != over[kind]}
    return [key for key in under if any(key in _OPTIONS_OF[kind] or "*" in _OPTIONS_OF[kind] for kind in changed)]


def _with(at: Any, parts: list[str], value: Any, path: list[str], where: str) -> Any:
    """A copy of `at` with the rest of a dotted key set; appends the keys it went through to `path`."""
    part, rest = parts[0], parts[1:]
    if isinstance(at, list):
        index = index_of(at, part)
        if index is None:
            raise ConfigError(f"{where}: {'.'.join(path)} has no item {part}{_hint(part, _names(at))}")
        path.append(str(index))
        return [*at[:index], _with(at[index], rest, value, path, where) if rest else value, *at[index + 1 :]]
    if not isinstance(at, dict):
        raise ConfigError(f"{where}: {'.'.join([*path, *parts])}: {'.'.join(path)} is {at!r} and has no keys")
    path.append(part)
    if rest:
        below = at.get(part)
        return {**at, part: _with({} if below is None else below, rest, value, path, where)}
    if value is None and _REMOVABLE.fullmatch(".".join(path[:-1])):
        return {k: v for k, v in at.items() if k != part}
    return {**at, part: value}


def _hint(part: str, names: list[str]) -> str:
    near = get_close_matches(part, names, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(names) or 'none'}"
