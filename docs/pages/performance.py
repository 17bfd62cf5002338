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
Why things are as they are, with figures: [Decisions](decisions.md); what changes were expected to bring, and what they
brought: [Expected and found](performance-notes.md).

No figure of a GPU exists yet: `python -m benchmarks.gpu` measures there, and was tried on a CPU only.
"""
REPORTS = {"methods": "Methods compared", "pipelines": "Pipelines compared", "at_scale": "At scale, on paper"}
MACHINE = {"processor": "{}", "cores": "{} cores", "torch": "torch {}", "python": "Python {}"}


def page() -> str:
    """The figures of every JSON file."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if path.stem not in REPORTS and (found.get("rows") or _figures(found)):
            parts += [f"## {path.stem}", *_measured(path.stem, found)]
    return "\n\n".join(parts) + "\n"


def reports() -> Iterator[tuple[str, str]]:
    """Path within the site and text of the written comparisons."""
    for name, title in REPORTS.items():
        text = (RESULTS / f"{name}.md").read_text()
        first, _, rest = text.partition("\n")
        head = first.removeprefix("# ")
        said = f"# {title}\n\n{prose(head) if head != title else ''}\n{rest}"
        yield f"performance-{name}.md", relinked(said, {f"{name}.png": f"benchmarks/{name}.png"})
    yield "performance-notes.md", (ROOT / "benchmarks" / "NOTES.md").read_text()


def _measured(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    script = ROOT / "benchmarks" / f"{name}.py"
    idea = (ast.get_docstring(ast.parse(script.read_text())) or "") if script.exists() else ""
    yield prose(idea.partition("\n\n")[0].rstrip(":"))
    facts = " · ".join(said.format(found[key]) for key, said in MACHINE.items() if found.get(key))
    yield f"`python -m benchmarks.{name}`" + (f" · {prose(facts)}" if facts else "")
    if found.get("rows"):
        yield table(["what", "median", "spread", "goal", ""], [_row(row) for row in found["rows"]])
    else:
        yield table(["figure", "value"], _figures(found))


def _figures(found: Mapping[str, Any], at: str = "") -> list[list[str]]:
    """Single numbers of a file that has no goals, by their keys."""
    rows = []
    for key, value in found.items():
        path = f"{at} {key}".strip().replace("_", " ")
        if isinstance(value, dict):
            rows += _figures(value, path)
        elif isinstance(value, float):
            rows.append([path, f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"])
    return rows


def _row(row: Mapping[str, Any]) -> list[str]:
    low, high = row["spread"]
    unit = f" {row['unit']}" if row["unit"] else ""
    goal = f"{row['sense'].replace('>=', '≥').replace('<=', '≤')} {row['target']:g}"
    met = "met" if row["met"] else "**missed**"
    return [prose(row["what"]), f"{row['value']:.3g}{unit}", f"{low:.3g} to {high:.3g}", goal, met]
