"""`--list` and `--schema`: what there is to name in a config."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdscale import plugins
from kdscale.config.reading import SHIPPED
from kdscale.errors import ConfigError

if TYPE_CHECKING:
    from kdscale.nn.build import TapRow

__all__ = ["plugins_of", "schema"]

CHOSEN = ("losses", "modifiers")
"""Kinds of which a table helps to choose, and one plug-in can be asked about."""
WIDTH = 100
"""Columns of the tables, where the terminal has as many."""
TEMPLATES = ("loss", "modifier", "strategy", "model")
"""Kinds of which a file to edit is printed."""
LISTED = ("losses", "modifiers", "strategies", "models", "datasets", "metrics")


def schema() -> int:
    """Print the JSON Schema of a config."""
    from kdscale.config.show import json_schema

    print(json.dumps(json_schema(), indent=1))  # noqa: T201
    return 0


def plugins_of(words: Sequence[str]) -> int:
    """Print the plug-ins of one kind, a model's taps, or a file to begin one's own with.

    Args:
        words: `losses`, `losses NAME`, `template KIND`, or `taps MODEL [KEY=VALUE ...]`, where keys are the model's
            arguments, or `size`, `channels` and `classes` of the data.

    Raises:
        ConfigError: no such kind.
    """
    if words[0] == "taps":
        return _taps(words[1:])
    if words[0] == "template":
        return _template(words[1:])
    if words[0] in CHOSEN and len(words) <= 2:
        _choose(*words)
        return 0
    if words[0] not in LISTED or len(words) > 1:
        raise ConfigError(
            f"--list {' '.join(words)}: say one of {', '.join(LISTED)}, a name after the first two, taps MODEL "
            f"[KEY=VALUE ...], or template {'|'.join(TEMPLATES)}"
        )
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, line in plugins.describe(words[0]):
        table.add_row(name, line)
    if words[0] == "models":
        table.add_row("torchvision:NAME", "any classification model of torchvision")
        table.add_row("timm:NAME", "any model of timm")
        table.add_row("package.module:Class", "your own nn.Module (plugins.path, plugins.allow)")
    if words[0] == "metrics":
        table.add_row("package.module:name", "your own function (plugins.path, plugins.allow)")
    Console().print(table)
    return 0


def _template(words: Sequence[str]) -> int:
    """A working file, as it is: `launch/check.py` and two steps of training are tests of it."""
    import kdscale

    if len(words) != 1 or words[0] not in TEMPLATES:
        raise ConfigError(f"--list template: of what? say one of {', '.join(TEMPLATES)}")
    folder = Path(kdscale.__file__).parent / "contract" / "templates"
    print((folder / f"{words[0]}.py").read_text(encoding="utf-8"), end="")  # noqa: T201
    return 0


def _choose(kind: str, name: str | None = None) -> None:
    """The table of a kind; or of one plug-in everything, its source in full and its options too."""
    console = Console(highlight=False)
    console = Console(width=min(WIDTH, console.width) if console.is_terminal else WIDTH, highlight=False)
    if name is None:
        console.print(_table([plugins.entry(kind, one) for one in plugins.available(kind)]))
        console.print(LEGEND.format(kind=kind), style="dim", markup=False)
        return
    plugins.load(kind, name)
    console.print(_details(kind, plugins.entry(kind, name)))


LEGEND = """
needs taps   a term names them: taps: {{student: [...], teacher: [...]}}
cacheable    a teacher's answers on disk serve it; pooled: where its taps are that, with
             cache: {{pooled: true}}
relational   its value belongs to the samples of a batch together
--list {kind} NAME tells all about one: its options, and its source in full"""


def _table(entries: Sequence[plugins.Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("idea", ratio=1)
    table.add_column("source", no_wrap=True)
    for title in ("needs\ntaps", "needs\nfeat.", "cache-\nable", "rela-\ntional"):
        table.add_column(title)
    for one in entries:
        row = (one.name, one.idea, _short(one.source), one.taps, one.features, one.cacheable, one.relational)
        table.add_row(*(escape(cell) for cell in row))
    return table


def _short(source: str) -> str:
    """A source's number or venue."""
    found = re.search(r"arXiv:[\d.]+\d|[A-Z][A-Za-z]{2,} \d{4}", source)
    return found[0] if found else ""


def _details(kind: str, one: plugins.Entry) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = [(one.name, one.idea), ("source", one.source), ("needs taps", one.taps), ("needs features", one.features)]
    rows += [("cacheable", one.cacheable), ("relational", one.relational)]
    for option, field in plugins.load(kind, one.name).Config.model_fields.items():
        default = json.dumps(field.get_default(call_default_factory=True))
        rows.append((option, f"{default}   {field.description or ''}".rstrip()))
    if (SHIPPED / "methods" / f"{one.name}.yaml").exists():
        rows.append(("try it", f"python launch/sweep.py kdscale:methods/{one.name}.yaml"))
    for label, text in rows:
        table.add_row(escape(label), escape(text))
    return table


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
