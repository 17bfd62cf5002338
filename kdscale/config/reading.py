"""Config files with everything that they extend, as one layer; their relative paths made absolute."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kdscale.config.merging import Layer
from kdscale.config.parsing import parse_file, shown_path
from kdscale.errors import ConfigError

__all__ = ["absolute_paths", "base_folder", "fragment", "read_layer", "shipped", "user_layer"]

SHIPPED = Path(__file__).resolve().parents[1] / "configs"
_PATH_KEYS = re.compile(
    r"(^|\.)(data\.root|eval\.sets\.[^.]+\.root|plugins\.path(\.\d+)?"
    r"|(student|networks\.[^.]+)\.(weights|class_names|class_map))$"
    r"|^sweep\..*(data\.root|student\.weights)\.\d+$"  # values of an axis
)
_USE_KEYS = re.compile(r"^sweep\.[^.]+\.[^.]+\.use(\.\d+)?$")


def read_layer(name: str | Path, base: Path | None = None, *, extended: tuple[Path, ...] = ()) -> Layer:
    """Read a file over everything that it extends.

    Args:
        name: a path, relative to `base`, or `kdscale:PATH` for a shipped config.
        base: folder that relative paths start from; default the working directory.
        extended: files that led here.

    Raises:
        ConfigError: a file is missing, is no YAML mapping, has a key twice, or extends itself.
    """
    path = _locate(str(name), base or Path.cwd())
    if path in extended:
        chain = " -> ".join(shown_path(p) for p in (*extended, path))
        raise ConfigError(f"{shown_path(path)}: extends itself: {chain}")
    own, bases = _own(path)
    layer = Layer()
    for one, where in bases:
        try:
            layer = layer.under(read_layer(one, path.parent, extended=(*extended, path)))
        except MissingFileError as error:
            raise ConfigError(f"{where}: extends: {error}") from error
    return layer.under(own)


def fragment(name: str) -> Layer:
    """What a file itself says, without what it extends and its name: for `use`, whose base is the user's own.

    Raises:
        ConfigError: it is missing, or sweeps.
    """
    path = _locate(name, Path.cwd())
    own, _ = _own(path)
    if "sweep" in own.values:
        raise ConfigError(f"{own.sources['sweep']}: sweep: a file that is merged by use: may not sweep itself")
    return Layer({key: value for key, value in own.values.items() if key != "name"}, own.sources)


def user_layer(path: Path | None) -> Layer:
    """The user's own defaults, which lie under every config; nothing where there is no such file."""
    if path is None:
        path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kdscale.yaml"
    return read_layer(path) if path.is_file() else Layer()


def base_folder(path: str | Path) -> Path:
    """The folder that a config's relative paths start from."""
    text = str(path)
    return (shipped(text) if text.startswith("kdscale:") else Path(text).expanduser().resolve()).parent


def shipped(text: str) -> Path:
    """The file behind `kdscale:PATH`, kept under the shipped configs."""
    path = (SHIPPED / text.removeprefix("kdscale:")).resolve()
    if not path.is_relative_to(SHIPPED.resolve()):
        raise ConfigError(f"{text}: leaves the folder of shipped configs")
    return path


def absolute_paths(values: Mapping[str, Any], base: Path, at: str = "") -> dict[str, Any]:
    """Replace relative paths under the keys that hold paths by absolute ones, starting from `base`."""
    return {key: _absolute(value, base, f"{at}.{key}" if at else str(key)) for key, value in values.items()}


class MissingFileError(ConfigError):
    """A config that was named is not there."""


def _own(path: Path) -> tuple[Layer, list[tuple[str, str]]]:
    """What a file itself says, and what it extends, each with its place."""
    values, sources = parse_file(path)
    bases = list(_bases(values.pop("extends", None), sources, shown_path(path)))
    own = {key: place for key, place in sources.items() if key.partition(".")[0] != "extends"}
    return Layer(absolute_paths(values, path.parent), own), bases


def _bases(extends: Any, sources: Mapping[str, str], file: str) -> Iterator[tuple[str, str]]:
    for index, one in enumerate(extends if isinstance(extends, list) else [extends]):
        where = sources.get(f"extends.{index}", sources.get("extends", file))
        if isinstance(one, str):
            yield one, where
        elif one is not None:
            raise ConfigError(f"{where}: extends: name a file, or a list of files, not {one!r}")


def _absolute(value: Any, base: Path, at: str) -> Any:
    if isinstance(value, dict):
        return absolute_paths(value, base, at)
    if isinstance(value, list):
        return [_absolute(item, base, f"{at}.{index}") for index, item in enumerate(value)]
    is_path = _PATH_KEYS.search(at) or (_USE_KEYS.search(at) and not str(value).startswith("kdscale:"))
    return str((base / Path(value).expanduser()).resolve()) if is_path and isinstance(value, str) else value


def _locate(name: str, base: Path) -> Path:
    path = shipped(name) if name.startswith("kdscale:") else (base / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise MissingFileError(f"{name}: no such file ({path}){_near(name, path)}")
    return path


def _near(name: str, path: Path) -> str:
    """What may have been meant."""
    if name.startswith("kdscale:"):
        known = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.rglob("*.yaml"))
        near = get_close_matches(name.removeprefix("kdscale:"), known, 1)
        return f"; {f'did you mean kdscale:{near[0]}? ' if near else ''}shipped are: {', '.join(known)}"
    near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
    return f"; did you mean {Path(name).with_name(near[0])}?" if near else ""
