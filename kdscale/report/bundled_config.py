"""A sweep's config for another machine: it needs no file beside those that go with it, and names no folder of this one.

What `use:` merges and small files that it names go with it; your own plug-ins lie in code/plugins. Data and imported
weights stay, and are named as what the other machine must have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.config.parsing import parse_file, write_value
from kdscale.config.reading import fragment
from kdscale.errors import ConfigError

__all__ = ["BundledConfig", "bundled_config"]

PLUGINS = "code/plugins"
_PLUGINS = re.compile(r"(^|\.)plugins\.path$")
_DROPPED = re.compile(r"(^|\.)(data\.(root|stage_to)|eval\.sets\.[^.]+\.root|tracking\.uri)$")
_WEIGHTS = re.compile(r"(^|\.)(student|networks\.[^.]+)\.weights(\.\d+)?$")
_COPIED = re.compile(r"(^|\.)(student|networks\.[^.]+)\.(class_names|class_map)$")
_USE = re.compile(r"^sweep\.[^.]+\.[^.]+\.use(\.\d+)?$")


@dataclass
class BundledConfig:
    """The text of sweep.yaml, what goes with it, and what does not."""

    text: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    """What the other machine must have and be told, one a line."""


def bundled_config(path: Path, precision: str | None) -> BundledConfig:
    """Make sweep.yaml portable.

    Args:
        path: the sweep's sweep.yaml.
        precision: what `train.precision: auto` came to, if that is one for all stages.

    Raises:
        ConfigError: a file that it names is gone.
    """
    values, _ = parse_file(path)
    found = BundledConfig()
    values = _Walk(found, "").mapping(values, "")
    train = values.get("train") or {}
    if precision is not None and train.get("precision", "auto") == "auto":
        values["train"] = {**train, "precision": precision}
    found.text = write_value(values)
    found.needs = sorted(set(found.needs))
    return found


class _Walk:
    """Goes through one document, whose paths start `up` below the bundle's top."""

    def __init__(self, found: BundledConfig, up: str) -> None:
        self._found, self._up = found, up

    def mapping(self, values: Mapping[str, Any], at: str) -> dict[str, Any]:
        result = {}
        for key, value in values.items():
            path = f"{at}.{key}" if at else str(key)
            if not _DROPPED.search(path):
                result[key] = self._value(value, path)
            elif path.endswith(".root"):
                self._found.needs.append(f"{path}=FOLDER, where the data does not lie in the usual place")
        return result

    def _value(self, value: Any, at: str) -> Any:
        if _PLUGINS.search(at):
            return [f"{self._up}{PLUGINS}"] if value else value
        if isinstance(value, dict):
            return self.mapping(value, at)
        if isinstance(value, list):
            return [self._value(item, f"{at}.{index}") for index, item in enumerate(value)]
        return self._file(value, at) if isinstance(value, str) else value

    def _file(self, value: str, at: str) -> str:
        if _USE.search(at):
            return self._fragment(value)
        if _WEIGHTS.search(at):
            self._found.needs.append(f"{at.removeprefix('sweep.')}=FILE, imported weights (here {Path(value).name})")
            return f"{self._up}weights/{Path(value).name}"
        if _COPIED.search(at):
            return f"{self._up}{self._add('files', value, _content(Path(value), at))}"
        return value

    def _fragment(self, name: str) -> str:
        values = _Walk(self._found, "../").mapping(fragment(name).values, "")
        return self._add("fragments", name.rpartition(":")[2], write_value(values).encode())

    def _add(self, folder: str, name: str, content: bytes) -> str:
        """Put a file into the bundle; of the same name in two places both keep theirs."""
        number = 1
        while self._found.files.setdefault(f"{folder}/{number}-{Path(name).name}", content) != content:
            number += 1
        return f"{folder}/{number}-{Path(name).name}"


def _content(path: Path, at: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{at}: {path} went with the sweep and cannot be read now ({error.strerror})") from error
