"""Pages of methods, one each: formula, source, options and config, from the plug-in's file and its shipped config."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.pages.language import words
from docs.pages.markdown import fence, folded, formula, prose, sections, table
from kdscale import plugins

__all__ = ["KINDS", "formulas", "index", "networks", "pages"]

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("losses", "modifiers", "strategies")
INDEX = """\
# Methods

Each loss, modifier and strategy is one file with its formula, its source, and where it departs from that. A method
runs alone:

```
python launch/sweep.py kdscale:methods/kd.yaml
```

and merges into your own config by `use: kdscale:methods/kd.yaml` in a sweep, or as a term: `losses: [{name: ce},
{name: kd, weight: 0.9, temperature: 4}]`. `python launch/sweep.py --list losses kd` shows options in the terminal.
What several processes change: [Losses over several processes](../losses.md).

## Notation

*N* samples of the global batch, *C* classes, *K* or *C* channels, *D* elements of a feature, *H* and *W* its height
and width; *s* the student, *t* the teacher; *z* logits, *F* a map, *f* a pooled feature, *y* the label, *T* the
temperature; *l* counts the tapped layers; *r* is a network that the loss trains with the student. Formulas are
those of the default options. [*a = b*] is 1 where it holds, else 0. The teacher passes no gradient.
"""
LEGEND = """\
*needs taps*: a term names features: `taps: {student: [...], teacher: [...]}` ([Taps](../taps.md)). *cacheable*: a
teacher's answers on disk serve it; *pooled*: where its taps are that, with `cache: {pooled: true}`. *relational*: its
value belongs to the samples of a batch together.
"""
NETWORKS = """\
# Networks and data sets

A network is named by `student: {model: NAME, ...}` with its arguments beside it. `torchvision:NAME` and `timm:NAME`
take one from those packages (`./install.sh vision`), `package.module:Class` is your own.

## Networks
"""


def pages() -> Iterator[tuple[str, str]]:
    """Path within the site and text, of every method and of the index."""
    yield "methods/index.md", index()
    for kind in KINDS:
        for name in plugins.available(kind):
            yield f"methods/{kind}/{name}.md", _page(kind, name)


def index() -> str:
    """The table of all methods."""
    parts = [INDEX]
    for kind in KINDS:
        entries = [plugins.entry(kind, name) for name in plugins.available(kind)]
        rows = [
            [f"[`{one.name}`]({kind}/{one.name}.md)", prose(one.idea), one.taps, one.cacheable, one.relational]
            for one in entries
        ]
        parts += [f"## {kind.capitalize()}", table(["name", "idea", "needs taps", "cacheable", "relational"], rows)]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def formulas(kind: str, name: str) -> list[str]:
    """The LaTeX of a plug-in's `Formula:` section, an entry each; a deeper indent goes on with the line above."""
    text = sections(_docstring(kind, name)).get("Formula", "")
    lines = [re.sub(r"\s*\n {8}\s*", " ", line) for line in re.split(r"\n(?= {4}\S)", text)]
    return [" ".join(line.split()) for line in lines if line.strip()]


def networks() -> str:
    """The page of networks and data sets."""
    parts = [NETWORKS]
    for name in plugins.available("models"):
        parts += _described("models", name, inspect.getdoc(plugins.load("models", name)) or "")
    parts += ["## Data sets", "A data set is named by `data: {name: NAME, options: {...}}`."]
    for name in plugins.available("datasets"):
        parts += _described("datasets", name, "")
    return "\n\n".join(parts) + "\n"


def _described(kind: str, name: str, docstring: str) -> list[str]:
    said = sections(_docstring(kind, name))
    parts = [f"### `{name}`", prose(" ".join(said[""].split()))]
    meanings = {
        key: " ".join(text.split()) for key, text in re.findall(r"^    (\w+): ((?:.|\n {8})+)", docstring, re.M)
    }
    chosen = plugins.options(kind, name) or {}
    config = getattr(plugins.load(kind, name), "Config", None)
    if config is not None:
        parts.append(_options(config))
    elif chosen:
        rows = [[f"`{key}`", _shown(value), prose(meanings.get(key, ""))] for key, value in chosen.items()]
        parts.append(table(["argument", "default", "meaning"], rows))
    return [*parts, f"*Source: {prose(' '.join(said.get('Source', 'none').split()))}*"]


def _shown(value: Any) -> str:
    if value is plugins.REQUIRED:
        return "required"
    return "" if value is plugins.UNREADABLE or value in (None, "") else f"`{json.dumps(value)}`".replace('"', "")


def _page(kind: str, name: str) -> str:
    one, said = plugins.entry(kind, name), sections(_docstring(kind, name))
    parts = [f"# {name}", f"**{prose(one.idea)}.**"]
    parts += [formula(latex) for latex in formulas(kind, name)]
    for heading in (key for key in said if key not in ("", "Formula")):
        parts += [f"*{heading}*: {prose(' '.join(said[heading].split()))}"]
    if kind != "strategies":
        facts = {"needs taps": one.taps, "needs features": one.features, "cacheable": one.cacheable}
        facts["relational"] = one.relational
        parts.append(" · ".join(f"{fact}: **{value}**" for fact, value in facts.items()))
    parts += ["## Options", _options(plugins.load(kind, name).Config)]
    parts += _config(name)
    entries = plugins.bibtex(kind, name)
    parts += [folded("To cite", fence(entries, "bibtex"))] if entries else []
    return "\n\n".join(parts) + "\n"


def _options(config: Any) -> str:
    schema = config.model_json_schema()
    rows = []
    for key, value in schema.get("properties", {}).items():
        found = value.get("default")
        shown = "" if found is None else f"`{json.dumps(found)}`".replace('"', "")
        rows.append([f"`{key}`", words(value, {}), shown, prose(value.get("description", ""))])
    return table(["option", "type", "default", "meaning"], rows) if rows else "It has none."


def _config(name: str) -> list[str]:
    path = ROOT / "configs" / "methods" / f"{name}.yaml"
    if not path.exists():
        return [f"## Where it is used\n\n{_users(name)}"]
    command = f"python launch/sweep.py kdscale:methods/{name}.yaml"
    return ["## Its config", fence(command), fence(path.read_text(), "yaml", f"configs/methods/{name}.yaml")]


def _users(name: str) -> str:
    """Shipped configs that name it."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "configs").rglob("*.yaml"))
        if re.search(rf"(name|strategy): {name}\b", path.read_text())
    ]
    return ", ".join(f"`{path}`" for path in found) or "In every config that names no other."


def _docstring(kind: str, name: str) -> str:
    text = (ROOT / "kdscale" / kind / f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or ""
