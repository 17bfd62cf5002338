"""One page that draws what all benchmarks reached: each figure beside its goal, on a common scale of ratios.

    python -m benchmarks.page        writes benchmarks/results/index.html from the JSON files beside it

The goal is the line in the middle; a dot is the median, its whisker the smallest and the largest value of the rounds.
One step to the side is a factor of two at most; the shaded side is the one that was wanted.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.figures import REPOSITORY, RESULTS, Row

__all__ = ["write_page"]

PICTURES = {"methods": "Methods compared", "pipelines": "Pipelines compared", "at_scale": "On paper, 8 to 512 GPUs"}
WIDTH, MIDDLE = 240, 120
WIDEST = 2.0
"""Factor from the goal at which a drawing ends."""
NAMED = {"processor": "", "cores": "core(s)", "torch": "(torch)", "python": "(Python)", "system": "(Linux)"}
"""Facts of the machine, and what is said behind each."""

TEMPLATE = Path(__file__).with_suffix(".html")


def write_page(results: Path = RESULTS) -> Path:
    """Draw every JSON file of a folder that holds rows; returns the page."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    parts = [_part(name, found) for name, found in documents.items() if isinstance(found.get("rows"), list)]
    rows = [row for part in parts for row in part["rows"]]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.from_string(TEMPLATE.read_text()).render(
        parts=parts, width=WIDTH, met=sum(row["met"] for row in rows), count=len(rows),
        pictures={name: title for name, title in PICTURES.items() if (results / f"{name}.png").exists()},
    )  # fmt: skip
    path = results / "index.html"
    path.write_text(text)
    return path


def _part(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    facts = [f"{found[key]} {NAMED[key]}".strip() for key in NAMED if found.get(key)]
    return {
        "name": name, "title": _title(name), "quick": found.get("quick", False), "facts": " · ".join(facts),
        "rows": [_drawn(entry) for entry in found["rows"]],
    }  # fmt: skip


def _title(name: str) -> str:
    """The first line of what the script says of itself."""
    script = REPOSITORY / "benchmarks" / f"{name}.py"
    said = ast.get_docstring(ast.parse(script.read_text())) if script.exists() else None
    return (said or name).partition("\n")[0].rstrip(".:")


def _drawn(entry: Mapping[str, Any]) -> dict[str, Any]:
    low, high = entry["spread"]
    row = Row(entry["what"], entry["value"], entry["unit"], entry["sense"], entry["target"], (low, high))
    return {
        "what": row.what, "value": f"{row.value:.3g} {row.unit}", "least": f"{low:.3g}", "most": f"{high:.3g}",
        "goal": f"{row.sense.replace('>=', '≥').replace('<=', '≤')} {row.target:g}", "met": row.met,
        "want": MIDDLE if row.sense == ">=" else 0,
        "at": _at(row.value, row.target), "low_at": _at(low, row.target), "high_at": _at(high, row.target),
    }  # fmt: skip


def _at(value: float, goal: float) -> float:
    """Where a value lies: the goal in the middle, a factor of `WIDEST` at either end, by its logarithm."""
    if value <= 0:
        return 0.0
    share = math.log(value / goal) / math.log(WIDEST)
    return round(MIDDLE * (1 + max(-1.0, min(1.0, share))), 1)


if __name__ == "__main__":
    print(write_page())
