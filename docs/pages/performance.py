"""Pages of figures: what benchmarks/results holds, each with the command that measures it again."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.pages.markdown import prose, relinked, table

__all__ = ["RESULTS", "page", "reports"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """\
# Performance

What was measured, each figure beside the goal that was set for it before, the missed ones too. The first column is
the median; the rounds in between are its spread. `make bench` measures all of it again and draws it in
`benchmarks/results/index.html`; the machine is said with each. Ratios carry to other machines better than seconds
do.

What students reach, method by method and pipeline by pipeline: [Methods compared](performance-methods.md),
[Pipelines compared](performance-pipelines.md). A step on many GPUs, on paper: [At scale](performance-at_scale.md).
Why things are as they are, with figures: [Decisions](decisions.md).
"""
REPORTS = {"methods": "Methods compared", "pipelines": "Pipelines compared", "at_scale": "At scale, on paper"}
MACHINE = {"processor": "", "cores": " cores", "torch": " (torch)", "python": " (Python)"}


def page() -> str:
    """The rows of every JSON file that has some."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if found.get("rows") and isinstance(found["rows"], list):
            parts += [f"## {path.stem}", *_measured(path.stem, found)]
    return "\n\n".join(parts) + "\n"


def reports() -> Iterator[tuple[str, str]]:
    """Path within the site and text of the written comparisons."""
    for name, title in REPORTS.items():
        text = (RESULTS / f"{name}.md").read_text()
        first, _, rest = text.partition("\n")
        said = f"# {title}\n\n{prose(first.removeprefix('# '))}\n{rest}"
        yield f"performance-{name}.md", relinked(said, {f"{name}.png": f"benchmarks/{name}.png"})


def _measured(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    script = ROOT / "benchmarks" / f"{name}.py"
    said = (ast.get_docstring(ast.parse(script.read_text())) or "") if script.exists() else ""
    yield prose(said.partition("\n\n")[0].rstrip(":"))
    facts = " · ".join(f"{found[key]}{unit}" for key, unit in MACHINE.items() if found.get(key))
    yield f"`python -m benchmarks.{name}`" + (f" · {prose(facts)}" if facts else "")
    yield table(["what", "median", "spread", "goal", ""], [_row(row) for row in found["rows"]])


def _row(row: Mapping[str, Any]) -> list[str]:
    low, high = row["spread"]
    unit = f" {row['unit']}" if row["unit"] else ""
    goal = f"{row['sense'].replace('>=', '≥').replace('<=', '≤')} {row['target']:g}"
    met = "met" if row["met"] else "**missed**"
    return [prose(row["what"]), f"{row['value']:.3g}{unit}", f"{low:.3g} to {high:.3g}", goal, met]
