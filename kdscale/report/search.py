"""A search in the report: its best trial, how it got there, and which keys mattered, all from search.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from kdscale import atomic
from kdscale.report.grid import Cell, Column, Grid
from kdscale.report.records import SweepRecord
from kdscale.report.wording import DASH, plural

__all__ = ["DOCUMENT", "SearchView", "best_of", "progress", "search_view", "short_keys", "written"]

DOCUMENT = "search.json"
MOST_ROWS = 10
_WORDS = {"complete": "complete", "pruned": "stopped early", "failed": "failed", "open": "under way"}


@dataclass(frozen=True)
class SearchView:
    """A search for the page."""

    title: str
    progress: str
    grid: Grid
    history: str
    """As SVG; empty before there are two figures."""
    importance: str
    """As SVG; empty where too few trials are finished."""


def best_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The best complete trial of a search.json."""
    complete = [one for one in document["asked"] if one["state"] == "complete"]
    sign = 1 if document["direction"] == "maximize" else -1
    return max(complete, key=lambda one: sign * one["value"], default=None)


def search_view(sweep: SweepRecord) -> SearchView | None:
    """What the page shows of a search; None where the sweep is none."""
    document = atomic.read_json(sweep.path / DOCUMENT)
    if document is None:
        return None
    from kdscale.report.search_plots import history_figure, importance_figure

    best = best_of(document)
    short = short_keys(document["space"])
    title = "No trial is complete yet."
    if best is not None:
        values = ", ".join(f"{short[key]} {written(value)}" for key, value in best["values"].items())
        title = f"{best['trial']} leads with {document['metric']} {best['value']:.4g}: {values}."
    return SearchView(
        title, progress(document), _grid(document, best, short), history_figure(document),
        importance_figure(document["importance"], short),
    )  # fmt: skip


def progress(document: dict[str, Any]) -> str:
    """How far it is, e.g. `41 of 50 trials: 30 complete, 9 stopped early, 2 failed`."""
    counts = Counter(one["state"] for one in document["asked"])
    said = ", ".join(f"{counts[state]} {word}" for state, word in _WORDS.items() if counts[state])
    return f"{len(document['asked'])} of {plural(document['trials'], 'trial')}: {said or 'none asked for'}"


def written(value: Any) -> str:
    """A suggested value, shortly."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def short_keys(keys: Any) -> dict[str, str]:
    """The last part of each key, with as much before it as tells it from the others."""
    found = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        clashes = [other for other in keys if other != key]
        found[key] = next((t for t in tails if not any(o == t or o.endswith(f".{t}") for o in clashes)), key)
    return found


def _grid(document: dict[str, Any], best: dict[str, Any] | None, short: dict[str, str]) -> Grid:
    sign = -1 if document["direction"] == "maximize" else 1
    complete = [one for one in document["asked"] if one["state"] == "complete"]
    rows = []
    for one in sorted(complete, key=lambda one: sign * one["value"])[:MOST_ROWS]:
        cells = [Cell(one["trial"]), Cell(f"{one['value']:.4g}", best=one is best)]
        rows.append([*cells, *(Cell(written(one["values"].get(key, DASH))) for key in short)])
    columns = [Column("trial", number=False), Column(document["metric"])]
    remarks = [f"{len(complete) - MOST_ROWS} more complete trials"] if len(complete) > MOST_ROWS else []
    failed = [one for one in document["asked"] if one["state"] == "failed"]
    remarks += [f"{one['trial']} failed: {one['reason']}" for one in failed[:3]]
    return Grid("Best trials of the search", [*columns, *map(Column, short.values())], rows, remarks)
