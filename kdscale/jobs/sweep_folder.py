"""What a launch writes into a sweep's folder before anything runs."""

from __future__ import annotations

from pathlib import Path

from kdscale import atomic
from kdscale.config.load import Sweep
from kdscale.jobs.launch_record import record_launch
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan

__all__ = ["write_plan", "write_sweep"]


def write_sweep(root: Root, plan: Plan, sweep: Sweep) -> Path:
    """Write plan.json, sweep.yaml and the record of the launch; returns the folder."""
    folder = root.path / "sweeps" / plan.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, plan, sweep)
    atomic.write_text(folder / "sweep.yaml", sweep.text)
    record_launch(folder, plan)
    return folder


def write_plan(folder: Path, plan: Plan, sweep: Sweep) -> None:
    """Write plan.json, over that of an earlier launch."""
    document = plan.document() | {"expect": [one.model_dump(exclude_unset=True) for one in sweep.expect]}
    first = atomic.read_json(folder / "plan.json")
    if first is not None:  # what the first launch found done is what this sweep reused, whatever is done by now
        document["created"] = first["created"]
        for digest, entry in document["stages"].items():
            entry["reused"] = first["stages"].get(digest, entry)["reused"]
    atomic.write_json(folder / "plan.json", document)
