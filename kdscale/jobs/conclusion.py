"""The end of a sweep: results, report and exports are written, the summary is printed with where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdscale.jobs.stage_exports import write_exports
from kdscale.jobs.wording import interpreter
from kdscale.report.page import write_report
from kdscale.report.results import write_results
from kdscale.report.tables import summary

if TYPE_CHECKING:
    from rich.console import Console

    from kdscale.trackers.shipping import ShipperProcess

__all__ = ["conclude"]


def conclude(folder: Path, root: Path, console: Console, shipper: ShipperProcess | None, *, ended: bool) -> bool:
    """Write and print what came out.

    Args:
        folder: of the sweep.
        root: of the runs.
        console: where to print.
        shipper: sends metrics to a server, where anything does.
        ended: whether its user let it run to its end; who stops it has nothing exported.

    Returns:
        Whether every done stage that asks for it is exported.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    write_results(folder)
    page = write_report(folder)
    shipped = shipper.finish(timeout_s=60.0) if shipper is not None else {}  # now that there is a report to ship
    console.print()
    console.print(summary(folder))
    say(f"{'report':9} {page}")
    say(f"{'results':9} {folder / 'results.json'}")
    if shipped:
        say(f"{'tracking':9} {shipped.get('uri', '')}")
        for problem in shipped.get("problems", []):
            say(f"          {problem}")
        say(f"{'look':9} {interpreter()} launch/track.py ui --runs {root}")
    return write_exports(root, folder, say) if ended else True
