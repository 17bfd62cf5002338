"""`--smoke`: two real steps of every distinct stage, stopped and resumed in between, evaluated and exported.

The canary that a dry run is not: real data, real loaders, real checkpoints; in this process, in a folder
that is removed afterwards.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kdscale.config.load import Sweep
from kdscale.errors import KDScaleError
from kdscale.jobs.inline import run_one
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan, PlannedStage
from kdscale.train.stop import Stop, StopAfter

__all__ = ["smoke"]

STEPS = 2
ROWS_HELD_OUT = 64


def smoke(plan: Plan, sweep: Sweep, root: Root, console: Console) -> int:
    """Run the smoke test of a plan; returns the exit code."""
    del sweep
    with tempfile.TemporaryDirectory(prefix="kdscale-smoke-") as scratch:
        here = Root(Path(scratch), [root.path, *root.reuse])
        failed = [stage.name for stage in _distinct(plan) if not _try(here, stage, console)]
    console.print("smoke test " + (f"FAILED: {', '.join(failed)}" if failed else "passed"), markup=False)
    return 1 if failed else 0


def _distinct(plan: Plan) -> list[PlannedStage]:
    """One stage of each kind (seeds and rates do not make a kind), and everything that it takes from."""
    chosen: dict[str, PlannedStage] = {}
    seen: set[str] = set()
    for stage in (stage for stage in plan.stages.values() if stage.kind != "fill"):
        spec = stage.definition["spec"]
        kind = str([spec.get(k) for k in ("student", "passes", "strategy", "options")]) + stage.kind + stage.model
        if kind not in seen:
            seen.add(kind)
            _with_parents(plan, stage, chosen)
    return list(chosen.values())


def _with_parents(plan: Plan, stage: PlannedStage, chosen: dict[str, PlannedStage]) -> None:
    """What a stage takes from, then itself; caches are filled by those that read them."""
    for digest, _ in stage.parents.values():
        if plan.stages[digest].kind != "fill":
            _with_parents(plan, plan.stages[digest], chosen)
    chosen.setdefault(stage.digest, stage)


def _try(here: Root, stage: PlannedStage, console: Console) -> bool:
    if stage.kind in ("convert", "evaluate"):
        return _try_whole(here, stage, console)
    short = _shortened(stage)
    prepare_folders(here, _only(short), retry_failed=False)
    try:
        first = run_one(here, short, StopAfter(1)) if stage.cost.steps else "interrupted"
        second = run_one(here, short, Stop())
    except KDScaleError as error:
        console.print(f"  {stage.name}: {error}", markup=False)
        return False
    folder = here.stage(stage.digest)
    assert folder is not None
    said = folder.state()
    good = (first, second) == ("interrupted", "done") and folder.snapshot("last").exists()
    console.print(f"  {stage.name:20} {'ok' if good else 'FAILED: ' + str(said.get('reason'))}", markup=False)
    return good


def _try_whole(here: Root, stage: PlannedStage, console: Console) -> bool:
    """A stage that takes no steps; what is measured is so on the few rows of a smoke run."""
    short = _shortened(stage) if stage.kind == "evaluate" else stage
    prepare_folders(here, _only(short), retry_failed=False)
    done = run_one(here, short, Stop()) == "done"
    folder = here.stage(stage.digest)
    if stage.kind == "evaluate" and folder is not None:
        said = "ok" if done else f"FAILED: {folder.state().get('reason')}"
        console.print(f"  {stage.name:20} {said}", markup=False)
    return done


def _shortened(stage: PlannedStage) -> PlannedStage:
    """The same stage over two global batches, with a few rows held out."""
    spec = dict(stage.definition["spec"])
    train, data = dict(spec.get("train", {})), dict(spec.get("data", {}))
    rows = STEPS * int(train.get("batch_size", 128))
    train |= {"epochs": min(1, int(train.get("epochs", 10))), "log_every_steps": 1}
    data |= {"limit": rows, "limit_test": ROWS_HELD_OUT}
    spec |= {"train": train, "data": data, "expect": None}
    keep = [k for k in stage.definition.get("keep", []) if not k.startswith(("epoch:", "acc:"))]
    parents = {role: {**parent, "selector": _last(parent)} for role, parent in stage.definition["parents"].items()}
    caches = {role: _small(cache["need"], rows) for role, cache in stage.definition.get("caches", {}).items()}
    changes = {"spec": spec, "keep": keep, "parents": parents, "caches": caches}
    return replace(stage, definition=stage.definition | changes)


def _last(parent: dict[str, Any]) -> str:
    """What is taken from a parent, of its last epoch: its network, or a term's parts."""
    _, sign, term = str(parent["selector"]).partition("#")
    return f"last{sign}{term}"


def _small(need: dict[str, Any], rows: int) -> dict[str, Any]:
    """A cache of the few rows of one student, in which it fills one view itself."""
    data = need["data"] | {"split": need["data"]["split"] | {"limit": rows}}
    return {"need": need | {"data": data, "selector": "last", "views": 1}, "filled_by": []}


def _only(stage: PlannedStage) -> Plan:
    return Plan("smoke", stage.digest, {}, [], {stage.digest: replace(stage, reuse=type(stage.reuse)(done=False))}, {})
