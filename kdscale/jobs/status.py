"""How a sweep is: as a screen, live, as JSON; and setting right what a dead process left behind."""

from __future__ import annotations

import json
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kdscale.jobs.overview import ORDER, SweepView
from kdscale.jobs.status_document import document
from kdscale.jobs.status_screen import screen
from kdscale.jobs.wording import ago
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import resolve, sweep_name

__all__ = ["heal", "show", "watch"]

WATCH_EVERY_S = 2.0
PRINT_EVERY_S = 30.0
OTHERS = 8


def show(name: str | None, root: Root, console: Console, *, as_json: bool, healing: bool, each: bool = False) -> int:
    """Print how a sweep is; returns 1 when a stage of it failed.

    Args:
        name: a sweep; by default the one planned last, followed by a line for each other.
        root: the run root.
        console: where to print.
        as_json: print JSON instead of a screen.
        healing: first turn stages whose process died into `interrupted`.
        each: list every stage instead of counting those that are alike.

    Raises:
        ConfigError: no such sweep.
    """
    sweep = _sweep(name, root)
    healed = heal(root, sweep if name else None) if healing else []
    view = SweepView(sweep, root, asks_queue=True)
    if as_json:
        console.print(json.dumps(document(view, healed)), markup=False, highlight=False, soft_wrap=True)
    else:
        for text in healed:
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(screen(view, console.width, each=each), soft_wrap=True)
        if name is None:
            _print_others(sweep, root, console)
    return int(view.counts()["failed"] > 0)


def watch(name: str | None, root: Root, console: Console, *, healing: bool, each: bool = False) -> int:
    """Show the screen until nothing moves any more; returns 1 when a stage failed."""
    sweep = _sweep(name, root)
    for text in heal(root, sweep if name else None) if healing else []:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    view = SweepView(sweep, root, asks_queue=True)
    planned = sweep.plan_file.stat().st_mtime_ns
    every = WATCH_EVERY_S if console.is_terminal else PRINT_EVERY_S
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(screen(view, console.width, each=each), refresh=True)
            else:
                console.print(screen(view, console.width, each=each), soft_wrap=True)
            if view.over:
                return int(view.counts()["failed"] > 0)
            time.sleep(every)
            if sweep.plan_file.stat().st_mtime_ns != planned:
                view, planned = SweepView(sweep, root, asks_queue=True), sweep.plan_file.stat().st_mtime_ns
            view.refresh()


def heal(root: Root, sweep: SweepFolder | None) -> list[str]:
    """Make states agree with what lives, and submit again what SLURM has lost; of this root, or of one sweep.

    Returns:
        A line for each stage that was changed, or sweep that was submitted again.
    """
    of_sweep = set(sweep.plan()["stages"]) if sweep else None
    folders = [f for f in root.stages() if f.writable and (of_sweep is None or f.digest in of_sweep)]
    healed = [f"healed {f.path.name}: interrupted, {found}" for f in folders if (found := f.reconcile())]
    if (root.path / "jobs").is_dir():
        from kdscale.jobs.slurm.heal import heal_sweeps

        healed += heal_sweeps(root, sweep)
    return healed


# --------------------------------------------------------------------------- which sweep


def _sweep(name: str | None, root: Root) -> SweepFolder:
    """The sweep of a name; of a stage, the sweep that first ran it."""
    found = resolve(name or "latest", root)
    if isinstance(found, StageFolder):
        return resolve(str(found.definition()["sweep"]), root)  # type: ignore[return-value]
    return found


def _print_others(shown: SweepFolder, root: Root, console: Console) -> None:
    others = [sweep for sweep in root.sweeps() if sweep.path != shown.path]
    if others:
        console.print()
    for sweep in others[:OTHERS]:
        counts = SweepView(sweep, root).counts()
        told = " · ".join(f"{state} {counts[state]}" for state in reversed(ORDER) if counts[state])
        planned = ago(sweep.plan_file.stat().st_mtime)
        console.print(Text(f"{sweep_name(sweep)}  {told}  planned {planned}", style="dim"), soft_wrap=True)
    if len(others) > OTHERS:
        console.print(Text(f"and {len(others) - OTHERS} more: python launch/runs.py ls", style="dim"))
