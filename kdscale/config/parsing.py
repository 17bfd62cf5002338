"""YAML as plain data, with the line that each key stands on.

Scalars are read as YAML 1.2 reads them: `1e-4` is a number, `no` and `off` are words. PyYAML by itself
follows 1.1, where a learning rate of 1e-4 is a text and a class called `no` a truth value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdscale.errors import ConfigError

__all__ = ["parse_file", "parse_value", "shown_path", "write_value"]


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else."""


class _Loader(yaml.SafeLoader):
    """Plain data only, with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+0123456789.")),
    ("merge", r"<<", ["<"]),
)  # fmt: skip


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """010 is ten: 1.1 reads it as octal."""
    return int(loader.construct_scalar(node))


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a file that holds one mapping.

    Returns:
        The mapping, and `file:line` of each key by its dotted path, items of lists by number.

    Raises:
        ConfigError: it is no YAML, no mapping, gives a key twice, or contains itself.
    """
    file = shown_path(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{file}:{node.start_mark.line + 1}: a config is a mapping of keys")
        reader = _Reader(loader, file)
        return reader.plain(node, ""), reader.sources
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}{_line_of(error)}: not YAML: {_problem(error)}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as text: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: is nested too deeply") from error


def parse_value(text: str) -> Any:
    """Read one value as it would stand in a file. Raises: ConfigError."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, "").plain(node, "")
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{text!r} is no value: {_problem(error)}") from error


def write_value(value: Any, *, inline: bool = False) -> str:
    """Write plain data so that `parse_file` and `parse_value` read the same: a text 1e5 stays a text."""
    width = 10_000 if inline else 80
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=inline, allow_unicode=True, default_flow_style=inline, width=width
    )
    return text


def shown_path(path: Path) -> str:
    """A path as short as it can be pasted from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


class _Reader:
    """Turns nodes into plain data and notes where each key stands."""

    def __init__(self, loader: _Loader, file: str) -> None:
        self._loader, self._file = loader, file
        self._open: set[int] = set()
        self.sources: dict[str, str] = {}

    def plain(self, node: yaml.Node, at: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._loader.construct_object(node)
        if id(node) in self._open:
            raise ConfigError(f"{self._place(node)}: {at or 'the document'} contains itself")
        if not node.tag.startswith(("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")):
            raise ConfigError(
                f"{self._place(node)}: {at}: the tag {node.tag} means nothing here; configs are plain data"
            )
        self._open.add(id(node))
        try:
            return self._mapping(node, at) if isinstance(node, yaml.MappingNode) else self._sequence(node, at)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, at: str) -> dict[str, Any]:
        result = {}
        for key, value in self._pairs(node, at):
            path = f"{at}.{key.value}" if at else str(key.value)
            self.sources[path] = self._place(key)
            result[str(key.value)] = self.plain(value, path)
        return result

    def _sequence(self, node: yaml.Node, at: str) -> list[Any]:
        result = []
        for index, value in enumerate(node.value):
            self.sources[f"{at}.{index}"] = self._place(value)
            result.append(self.plain(value, f"{at}.{index}"))
        return result

    def _pairs(self, node: yaml.MappingNode, at: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """A mapping's own keys, then those that `<<` lends it; a key given twice is no victory of the last."""
        seen: set[str] = set()
        lent: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                lent += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self._place(key)}: {at}: a key is a word or a number")
            if key.value in seen:
                raise ConfigError(f"{self._place(key)}: {at + '.' if at else ''}{key.value} is given twice")
            seen.add(key.value)
            yield key, value
        for key, value in (pair for mapping in lent for pair in self._lent(mapping, at)):
            if key.value not in seen:
                seen.add(key.value)
                yield key, value

    def _lent(self, node: yaml.Node, at: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{self._place(node)}: {at}.<<: only a mapping lends its keys")
        return self._pairs(node, at)

    def _place(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error: Exception) -> str:
    """A parser's complaint on one line, without its drawing of the place."""
    return " ".join(str(getattr(error, "problem", None) or error).split())
