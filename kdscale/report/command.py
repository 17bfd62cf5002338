"""What `launch/report.py` does once it knows the sweeps: tables, a ranking, or JSON; and a fresh page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from kdscale.errors import ConfigError
from kdscale.report.bundle import write_bundle
from kdscale.report.citations import bibliography
from kdscale.report.grid import Grid, Screen, render
from kdscale.report.groups import Group, layout_of
from kdscale.report.page import write_report
from kdscale.report.published import published_grids
from kdscale.report.ranking import ON_TEST, as_json, chosen_groups, ranked, ranking_grid
from kdscale.report.records import SweepRecord
from kdscale.report.results import write_results
from kdscale.report.tables import group_grid, main_grids, summary
from kdscale.report.where import Filter

__all__ = ["Request", "run_report"]

WIDTH_OF_FILES = 120
"""Characters a line when the output is no terminal."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    sweeps: Sequence[Path]
    best: str | None = None
    where: str | None = None
    over: Sequence[str] | None = None
    form: str = "table"
    as_json: bool = False
    bibtex: bool = False
    bundle: Path | None = None

    @property
    def plain(self) -> bool:
        """Nothing in particular: the summary of one sweep, and its files made anew."""
        chosen = self.best or self.where or self.over is not None or self.as_json or self.bibtex or self.form != "table"
        return len(self.sweeps) == 1 and not chosen


def run_report(request: Request) -> None:
    """Print what was asked for.

    Raises:
        ConfigError: a sweep, figure, axis or condition that does not exist.
    """
    if request.bundle is not None:
        _bundle(request.sweeps, request.bundle)
        return
    if request.plain:
        _refresh(request.sweeps[0])
        return
    sweeps = [SweepRecord(path) for path in request.sweeps]
    if request.bibtex:
        print(bibliography(sweeps), end="")  # noqa: T201
        return
    everything, _ = chosen_groups(sweeps, request.over)
    groups, condition = chosen_groups(sweeps, request.over, request.where)
    if not groups:
        raise ConfigError(f"--where {request.where!r} keeps none of {sum(len(s.trials) for s in sweeps)} trials")
    shown = ranked(groups, request.best) if request.best else groups
    if request.as_json:
        print(json.dumps(as_json(shown, everything, request.best), indent=1))  # noqa: T201
        return
    for grid in _grids(request, sweeps, shown, condition):
        _show(grid, request.form)


def _bundle(sweeps: Sequence[Path], target: Path) -> None:
    if len(sweeps) > 1 or target.suffix != ".zip":
        raise ConfigError("--bundle FILE.zip: takes one sweep, and a file that ends in .zip")
    said = write_bundle(sweeps[0], target)
    print("\n".join([f"bundle    {target} ({target.stat().st_size / 1e6:.1f} MB)", *said]))  # noqa: T201


def _grids(
    request: Request, sweeps: Sequence[SweepRecord], groups: Sequence[Group], condition: Filter | None
) -> list[Grid]:
    if request.best:
        grids = [ranking_grid(groups, request.best)]
    elif len(sweeps) > 1:
        grids = [group_grid(groups)]
    else:
        grids = main_grids(sweeps[0], layout_of(sweeps[0], request.over), groups)
    on_test = sorted(condition.used & ON_TEST) if condition else []
    if on_test:
        warning = f"--where looks at test ({', '.join(on_test)}): what it keeps is chosen on test."
        grids[-1] = replace(grids[-1], remarks=[*grids[-1].remarks, warning])
    return [*grids, *(published_grids(sweeps[0]) if len(sweeps) == 1 and not request.best and not condition else [])]


def _refresh(sweep: Path) -> None:
    """Print the summary and write results and page as of now, where the folder may be written."""
    console = _console()
    console.print(summary(sweep))
    console.print()
    try:
        write_results(sweep)
        console.print(f"report    {write_report(sweep)}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"results   {sweep / 'results.json'}", markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        console.print(f"not written: {error}", markup=False, highlight=False, soft_wrap=True)


def _show(grid: Grid, form: str) -> None:
    if form == "table":
        _console().print(Screen(grid))
    else:
        print(render(grid, form))  # noqa: T201


def _console() -> Console:
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if narrow else WIDTH_OF_FILES)
