"""A config file as a mapping, with the place that set each of its keys.

`extends` is followed here: a file lies over its base, mapping by mapping; lists are replaced whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdscale.errors import ConfigError

__all__ = ["Layer", "merged", "read_layer", "shipped"]

SHIPPED = Path(__file__).resolve().parents[1] / "configs"
_PATH_KEYS = re.compile(r"(^|\.)(data\.root|student\.weights|plugins\.path(\.\d+)?)$")
_NAMES_A_KIND = ("model",)


@dataclass(frozen=True)
class Layer:
    """A mapping and where each dotted key of it was set."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """`file:line` or `command line`, by dotted key; lists by index."""

    def under(self, other: Layer) -> Layer:
        """This layer with `other` laid over it."""
        sources = dict(self.sources)
        values = _merge(self.values, other.values, "", sources)
        return Layer(values, sources | other.sources)


def read_layer(name: str | Path, base: Path | None = None, *, extended: tuple[Path, ...] = ()) -> Layer:
    """Read a file with everything that it extends.

    Args:
        name: a path, relative to `base`, or `kdscale:PATH` for a shipped config.
        base: folder that relative paths start from; default the working directory.
        extended: files that led here.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, has a key twice, or extends itself.
    """
    path = _locate(str(name), base or Path.cwd())
    if path in extended:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(p.name for p in (*extended, path))}")
    layer = _parse(path)
    parent = layer.values.pop("extends", None)
    layer.sources.pop("extends", None)
    if parent is None:
        return layer
    for one in [parent] if isinstance(parent, str) else reversed(parent):
        layer = read_layer(one, path.parent, extended=(*extended, path)).under(layer)
    return layer


def own_layer(name: str, base: Path) -> Layer:
    """Read what a file itself says, without what it extends: for `use`, whose base is the user's own."""
    layer = _parse(_locate(name, base))
    layer.values.pop("extends", None)
    layer.values.pop("name", None)
    return layer


def shipped(text: str) -> Path:
    """The file behind `kdscale:PATH`, kept under the shipped configs."""
    path = (SHIPPED / text.removeprefix("kdscale:")).resolve()
    if not path.is_relative_to(SHIPPED.resolve()):
        raise ConfigError(f"{text}: leaves the folder of shipped configs")
    return path


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another."""
    result: dict[str, Any] = _merge(dict(under), dict(over), "", {})
    return result


def absolute_paths(values: dict[str, Any], base: Path, at: str = "") -> dict[str, Any]:
    """Replace relative paths under the keys that hold paths by absolute ones, starting from `base`."""
    return {key: _absolute(value, base, f"{at}.{key}" if at else str(key)) for key, value in values.items()}


def _absolute(value: Any, base: Path, at: str) -> Any:
    if isinstance(value, dict):
        return absolute_paths(value, base, at)
    if isinstance(value, list):
        return [_absolute(item, base, f"{at}.{index}") for index, item in enumerate(value)]
    if isinstance(value, str) and _PATH_KEYS.search(at):
        return str((base / Path(value).expanduser()).resolve())
    return value


def _locate(name: str, base: Path) -> Path:
    path = shipped(name) if name.startswith("kdscale:") else (base / Path(name).expanduser()).resolve()
    if not path.is_file():
        hint = ""
        if name.startswith("kdscale:"):
            known = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.rglob("*.yaml"))
            hint = f"; shipped are: {', '.join(known)}"
        raise ConfigError(f"{name}: no such file ({path}){hint}")
    return path


def _parse(path: Path) -> Layer:
    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{_short(path)}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_short(path)}: is not text in UTF-8") from error
    if node is None:
        return Layer({}, {})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_short(path)}:{node.start_mark.line + 1}: a config is a mapping of keys")
    sources: dict[str, str] = {}
    _mark(node, "", _short(path), sources)
    values = yaml.safe_load(path.read_text())
    return Layer(absolute_paths(values, path.parent), sources)


def _mark(node: yaml.Node, at: str, file: str, sources: dict[str, str]) -> None:
    """Note the line of every key; a key given twice is an error, not the last one's victory."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(
                    f"{file}:{key.start_mark.line + 1}: {at + '.' if at else ''}{key.value} is given twice"
                )
            seen.add(key.value)
            path = f"{at}.{key.value}" if at else key.value
            sources[path] = f"{file}:{key.start_mark.line + 1}"
            _mark(value, path, file, sources)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            sources[f"{at}.{index}"] = f"{file}:{value.start_mark.line + 1}"
            _mark(value, f"{at}.{index}", file, sources)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _merge(under: Any, over: Any, at: str, sources: dict[str, str]) -> Any:
    """Mappings merge key by key; anything else, an empty mapping, and another model replace what was there."""
    if not isinstance(under, dict) or not isinstance(over, dict) or not over or _another_kind(under, over):
        for key in [k for k in sources if at and k.startswith(f"{at}.")]:
            del sources[key]
        return over
    result = dict(under)
    for key, value in over.items():
        path = f"{at}.{key}" if at else str(key)
        result[key] = _merge(under[key], value, path, sources) if key in under else value
    return result


def _another_kind(under: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether `over` names another model: its arguments are not those of the one underneath."""
    return any(k in under and k in over and under[k] != over[k] for k in _NAMES_A_KIND)
