"""How a sweep is: as a screen, live, as JSON; and setting right what a dead process left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kdscale.jobs.overview import ORDER, StageView, SweepView
from kdscale.jobs.status_screen import screen
from kdscale.jobs.wording import ago
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import resolve, sweep_name

__all__ = ["document", "heal", "show", "watch"]

WATCH_EVERY_S = 2.0
PRINT_EVERY_S = 30.0
OTHERS = 8


def show(name: str | None, root: Root, console: Console, *, as_json: bool, healing: bool) -> int:
    """Print how a sweep is; returns 1 when a stage of it failed.

    Args:
        name: a sweep; by default the one planned last, followed by a line for each other.
        root: the run root.
        console: where to print.
        as_json: print JSON instead of a screen.
        healing: first turn stages whose process died into `interrupted`.

    Raises:
        ConfigError: no such sweep.
    """
    sweep = _sweep(name, root)
    healed = heal(root, sweep if name else None) if healing else []
    view = SweepView(sweep, root)
    if as_json:
        console.print(json.dumps(document(view, healed)), markup=False, highlight=False, soft_wrap=True)
    else:
        for text in healed:
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(screen(view, console.width), soft_wrap=True)
        if name is None:
            _print_others(sweep, root, console)
    return int(view.counts()["failed"] > 0)


def watch(name: str | None, root: Root, console: Console, *, healing: bool) -> int:
    """Show the screen until nothing moves any more; returns 1 when a stage failed."""
    sweep = _sweep(name, root)
    for text in heal(root, sweep if name else None) if healing else []:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    view = SweepView(sweep, root)
    planned = sweep.plan_file.stat().st_mtime_ns
    every = WATCH_EVERY_S if console.is_terminal else PRINT_EVERY_S
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(screen(view, console.width), refresh=True)
            else:
                console.print(screen(view, console.width), soft_wrap=True)
            if view.over:
                return int(view.counts()["failed"] > 0)
            time.sleep(every)
            if sweep.plan_file.stat().st_mtime_ns != planned:
                view, planned = SweepView(sweep, root), sweep.plan_file.stat().st_mtime_ns
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


def document(view: SweepView, healed: Sequence[str] = ()) -> dict[str, Any]:
    """The same as JSON."""
    launcher = view.folder.launcher()
    return {
        "schema": 1, "sweep": view.name, "folder": str(view.folder.path), "digest": view.plan["digest"],
        "created": view.plan["created"], "command": view.plan["command"],
        "launcher": {"host": launcher["host"], "pid": launcher["pid"]} if launcher else None,
        "counts": dict(view.counts()), "hours_used": view.hours(), "seconds_left": view.seconds_left(),
        "over": view.over, "healed": list(healed), "stages": [_stage_document(view, s) for s in view.stages.values()],
    }  # fmt: skip


def _stage_document(view: SweepView, stage: StageView) -> dict[str, Any]:
    return {
        "name": stage.name, "stage": stage.entry["name"], "digest": stage.digest, "state": stage.status,
        "reason": stage.state.get("reason", ""), "step": stage.step, "steps": stage.steps,
        "epoch": stage.state.get("epoch"), "loss": stage.metric("train/loss"), "val_top1": stage.metric("val/top1"),
        "top1": stage.top1, "images_per_s": stage.metric("train/images_per_s"), "seconds_left": stage.seconds_left(),
        "attempts": len(stage.state.get("attempts", [])), "host": (stage.holder or {}).get("host"),
        "waits_for": [parent.name for parent in view.waits_for(stage)],
        "folder": str(stage.folder.path) if stage.folder else None,
    }  # fmt: skip


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
