"""`--list` and `--schema`: what there is to name in a config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from kdscale import plugins
from kdscale.errors import ConfigError

if TYPE_CHECKING:
    from kdscale.nn.build import TapRow

__all__ = ["plugins_of", "schema"]

LISTED = ("losses", "modifiers", "strategies", "models", "datasets")


def schema() -> int:
    """Print the JSON Schema of a config."""
    from kdscale.config.show import json_schema

    print(json.dumps(json_schema(), indent=1))  # noqa: T201
    return 0


def plugins_of(words: Sequence[str]) -> int:
    """Print the plug-ins of one kind, or a model's taps.

    Args:
        words: `losses`, or `taps MODEL [KEY=VALUE ...]`, where keys are the model's arguments, or `size`,
            `channels` and `classes` of the data.

    Raises:
        ConfigError: no such kind.
    """
    if words[0] == "taps":
        return _taps(words[1:])
    if words[0] not in LISTED or len(words) > 1:
        raise ConfigError(f"--list {' '.join(words)}: say one of {', '.join(LISTED)}, or taps MODEL [KEY=VALUE ...]")
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, line in plugins.describe(words[0]):
        table.add_row(name, line)
    if words[0] == "models":
        table.add_row("torchvision:NAME", "any classification model of torchvision")
        table.add_row("timm:NAME", "any model of timm")
        table.add_row("package.module:Class", "your own nn.Module (plugins.path, plugins.allow)")
    Console().print(table)
    return 0


def _taps(words: Sequence[str]) -> int:
    if not words:
        raise ConfigError("--list taps: which model? --list taps resnet_cifar depth=20 size=32 channels=3")
    import yaml

    from kdscale.api import DatasetInfo
    from kdscale.config.schema import PluginsConfig, StudentConfig
    from kdscale.nn.build import list_taps

    given = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words[1:])}
    size, channels, classes = (int(given.pop(k, d)) for k, d in (("size", 32), ("channels", 3), ("classes", 10)))
    info = DatasetInfo(
        classes, channels, size, 1, 1, (0.5,) * channels, (0.25,) * channels, tuple(map(str, range(classes)))
    )
    package = words[0].partition(".")[0] if ":" in words[0] else ""
    rows = list_taps(
        StudentConfig(model=words[0], **given), info, size, plugins=PluginsConfig(path=["."], allow=[package])
    )
    foreign = ":" in words[0]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, side in (
        ("path", "left"),
        ("name", "left"),
        ("shape", "left"),
        ("params so far", "right"),
        *([("as", "left")] if foreign else []),
        ("", "left"),
    ):
        table.add_column(title, justify=side, no_wrap=title in ("path", "name", "shape"))  # type: ignore[arg-type]
    for row in rows:
        shape = "x".join(map(str, row.shape)) if row.shape else "-"
        forms = [_forms(row)] if foreign else []
        table.add_row(row.path, row.name, shape, f"{row.params:,}", *forms, row.usable)
    Console().print(table)
    return 0


def _forms(row: TapRow) -> str:
    """The forms that a tap may have there; of tokens that the model does not count, what is to be said with them."""
    if row.usable or row.shape is None:
        return ""
    return ", ".join(row.forms) or ("with prefix: N" if len(row.shape) == 2 else "")
