"""README's table of plug-ins, written from the files themselves: `python docs/method_table.py [--write]`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"losses": "loss", "modifiers": "modifier", "strategies": "strategy", "models": "model", "datasets": "data set"}
BEGIN, END = "<!-- methods: written by docs/method_table.py -->", "<!-- end of methods -->"


def table() -> str:
    """One row a plug-in: kind, name, idea, source."""
    rows = [row(kind, path) for kind in KINDS for path in sorted((ROOT / "kdscale" / kind).glob("[!_]*.py"))]
    return "\n".join(["| kind | name | idea | source |", "|---|---|---|---|", *rows])


def row(kind: str, path: Path) -> str:
    """The row of one file, from its module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    idea = text.split("\n\n")[0].replace("\n", " ").rstrip(".")
    cells = [KINDS[kind], f"[`{path.stem}`](kdscale/{kind}/{path.name})", idea, source(text)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def source(text: str) -> str:
    """What follows `Source:`, up to the next key or sentence's end before a new paragraph."""
    found = re.search(r"Source:\s*(.+?)(?=\n\s*\n|\n[A-Z]\w+:|\Z)", text, re.S)
    return " ".join(found[1].split()).rstrip(".") if found else ""


def written(readme: str) -> str:
    """The README with the table in its place."""
    head, tail = readme.split(BEGIN)[0], readme.split(END)[1]
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def main() -> None:
    """Print the table, or write it into README.md."""
    if "--write" in sys.argv[1:]:
        path = ROOT / "README.md"
        path.write_text(written(path.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
