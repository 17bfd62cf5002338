"""Small pieces of Markdown: tables, fences, and prose of docstrings that must not be read as marks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from latex2mathml.converter import convert

__all__ = ["fence", "folded", "formula", "prose", "relinked", "sections", "table"]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar or a line break in a cell does not end it."""
    lines = [titles, ["---"] * len(titles), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def fence(text: str, info: str = "", title: str = "") -> str:
    """A block of code."""
    named = f' title="{title}"' if title else ""
    return f"```{info}{named}\n{text.rstrip()}\n```"


def folded(title: str, text: str) -> str:
    """What a reader opens with a click."""
    return f'??? note "{title}"\n\n' + "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def formula(latex: str) -> str:
    """One formula as MathML, which browsers draw by themselves; HTML that Markdown leaves alone."""
    return f'<div class="formula">{convert(latex, display="block")}</div>'


def prose(text: str) -> str:
    """Words of a docstring: outside of `code` nothing is a mark of Markdown or HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>\[\]|])", r"\\\1", part) for part in parts)


def sections(docstring: str) -> dict[str, str]:
    """A module's docstring by its headings (`Source:` at the beginning of a line); the idea under the empty one."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in docstring.strip().splitlines():
        heading = re.match(r"([A-Z]\w+):\s*(.*)", line)
        if heading:
            name, line = heading[1], heading[2]
        found.setdefault(name, []).append(line)
    return {key: "\n".join(lines).strip("\n") for key, lines in found.items()}


def relinked(text: str, places: Mapping[str, str]) -> str:
    """Links of a page that lies elsewhere in the repository: by where they lead, where that lies on the site."""
    for there, here in places.items():
        text = text.replace(f"]({there}", f"]({here}")
    return text
