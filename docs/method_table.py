"""README's table of plug-ins, written from the files themselves: `python docs/method_table.py [--write]`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kdscale import plugins  # noqa: E402

CHOSEN = {"losses": "loss", "modifiers": "modifier"}
KINDS = {"strategies": "strategy", "models": "model", "datasets": "data set"}
BEGIN, END = "<!-- methods: written by docs/method_table.py -->", "<!-- end of methods -->"


def table() -> str:
    """Losses and modifiers as `--list` has them, then one row for every other plug-in."""
    chosen = [
        [kind, link(folder, one), one.idea, one.taps, one.features, one.cacheable, one.relational, one.source]
        for folder, kind in CHOSEN.items()
        for one in (plugins.entry(folder, name) for name in plugins.available(folder))
    ]
    others = [
        [kind, link(folder, one), one.idea, one.source]
        for folder, kind in KINDS.items()
        for one in (plugins.entry(folder, name) for name in plugins.available(folder))
    ]
    needs = ["needs taps", "needs features", "cacheable", "relational"]
    first = rows(["kind", "name", "idea", *needs, "source"], chosen)
    return f"{first}\n\n{rows(['kind', 'name', 'idea', 'source'], others)}"


def link(folder: str, one: plugins.Entry) -> str:
    """A plug-in's name, leading to its file."""
    return f"[`{one.name}`](kdscale/{folder}/{one.name}.py)"


def rows(titles: list[str], cells: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
