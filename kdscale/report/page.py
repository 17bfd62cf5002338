"""report.html: one page that holds everything, needs no network, and can be read on paper, at night and on a phone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdscale import __version__, atomic
from kdscale.report import first_look, graph, panels
from kdscale.report.caches import cache_savings, teacher_times
from kdscale.report.chains import chain_figures
from kdscale.report.classes import class_heat
from kdscale.report.failures import failures, states
from kdscale.report.grid import Grid, templates
from kdscale.report.groups import Group, Layout, groups_of, layout_of
from kdscale.report.headline import headline, provenance, savings
from kdscale.report.profiles import BARS, profile_figure, profile_grid, profiles_of
from kdscale.report.published import published_grids
from kdscale.report.records import SweepRecord
from kdscale.report.search import search_view
from kdscale.report.tables import group_grid, main_grids, whole_grid
from kdscale.report.wording import count, millis, percent

__all__ = ["write_report"]

MOST_TERM_TABLES = 9


def write_report(sweep_folder: Path) -> Path:
    """Write report.html into the sweep's folder, from whatever its stages have left so far; returns its path.

    Raises:
        ConfigError: the folder holds no plan.
    """
    sweep = SweepRecord(sweep_folder)
    target = sweep_folder / "report.html"
    atomic.write_text(target, templates().get_template("page.html").render(_context(sweep)))
    return target


def _context(sweep: SweepRecord) -> dict[str, Any]:
    layout = layout_of(sweep)
    groups = groups_of(sweep, layout.over)
    colours = panels.colours_of(sweep, layout)
    terms = first_look.term_tables(sweep)
    return {
        "sweep": sweep,
        "states": states(sweep),
        "unfinished": [s for s in sweep.stages.values() if not s.done and not s.pruned],
        "headline": headline(sweep, groups),
        "failures": failures(sweep),
        "grids": _grids(sweep, layout, groups),
        "published": published_grids(sweep),
        "search": search_view(sweep),
        "legend": colours.legend(),
        "intervals": panels.intervals(groups, colours),
        "dependence": panels.dependence(sweep, groups, colours),
        "trade_offs": panels.trade_offs(sweep, groups, colours),
        "chains": chain_figures(sweep, groups, colours),
        "chain_legend": colours.legend() if colours.axis else [],
        "curves": panels.curve_rows(sweep, colours),
        "graph": graph.draw(sweep),
        **_steps(sweep),
        "savings": savings(sweep),
        "caches": [saving for saving in cache_savings(sweep) if saving.read],
        "teacher_times": teacher_times(sweep),
        "sheets": first_look.sheets(sweep),
        "terms": terms[:MOST_TERM_TABLES],
        "more_terms": max(0, len(terms) - MOST_TERM_TABLES),
        "heat": class_heat(sweep, groups),
        "everything": whole_grid(sweep),
        "provenance": provenance(sweep),
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "version": __version__,
        "count": count,
        "percent": percent,
        "millis": millis,
    }


def _steps(sweep: SweepRecord) -> dict[str, Any]:
    profiles = profiles_of(sweep)
    return {
        "profiles": profile_grid(profiles) if profiles else None,
        "steps": profile_figure(profiles) if profiles else "",
        "step_legend": list(enumerate(BARS)),
    }


def _grids(sweep: SweepRecord, layout: Layout, groups: Sequence[Group]) -> list[Grid]:
    """The tables of the terminal; a matrix is followed by its cells as a list, with their sizes and speeds."""
    grids = main_grids(sweep, layout, groups)
    if layout.is_matrix:
        grids.append(group_grid(groups, "The same as a list"))
    return grids
