"""The runs that a sweep is on a tracking server, shaped for people who sort, filter and compare there.

    sweep                      one parent run
    ├── trial  crd · s1        complete by itself: axes, final figures, size and cost, so that one filter finds the best
    ├── group  crd · mean      the same over seeds, with a 95 % interval: the UI cannot average
    └── stage  student @ ...   each unique stage once, with its curves

Nothing here knows MLflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kdscale.trackers import notes
from kdscale.trackers.figures import final_figures, group_figures, trial_figures
from kdscale.trackers.files import RUNNING, StageFiles, SweepFiles, Trial

__all__ = ["RunShape", "Status", "metric_name", "shapes_of"]

Level = Literal["sweep", "trial", "group", "stage"]
Status = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]

STATUS: Mapping[str, Status] = {
    "done": "FINISHED", "failed": "FAILED", "blocked": "FAILED", "running": "RUNNING", "evaluating": "RUNNING",
    "interrupted": "KILLED", "paused": "KILLED", "cancelled": "KILLED", "queued": "SCHEDULED",
}  # fmt: skip
WORST_FIRST = ("failed", "blocked", "running", "evaluating", "paused", "cancelled", "interrupted", "queued", "waiting")
TRIAL_CURVES = ("val/", "train/loss")
"""Curves that a trial repeats from its last stage, so that selected trials can be laid over each other."""


@dataclass(frozen=True)
class RunShape:
    """What one run on the server should be like now."""

    key: str
    """Identity: the run is found again by it."""
    level: Level
    name: str
    state: str
    status: Status
    ledger: Path
    """File that records what has been shipped of it."""
    tags: Mapping[str, str] = field(default_factory=dict)
    once: Mapping[str, str] = field(default_factory=dict)
    """Tags that a run gets when it is made and keeps."""
    params: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    at: float = 0.0
    """Unix seconds of the figures: fixed, so that shipping them twice is one point."""
    started: float | None = None
    ended: float | None = None
    spool: Path | None = None
    curves: tuple[str, ...] = ("",)
    """Prefixes of the metrics that are taken from the spool."""
    note: str = ""
    documents: Sequence[Path] = ()
    """Files to be uploaded."""
    config: Sequence[tuple[str, Path]] = ()
    """Definitions, by stage, that make up the run's config.yaml; uploaded once all of them exist."""


def shapes_of(sweep: SweepFiles, *, open_: bool) -> Iterator[RunShape]:
    """The runs of a sweep, parent first.

    Args:
        sweep: Its files as they are now.
        open_: Whether somebody goes on working on it: what waits is then scheduled, and else ended.
    """
    for shape in _shapes_of(sweep, expected=open_ or sweep.running):
        yield replace(shape, once={"kdscale.sweep": sweep.name, "kdscale.sweep_id": sweep.folder.name})


def _shapes_of(sweep: SweepFiles, *, expected: bool) -> Iterator[RunShape]:
    yield _sweep_run(sweep, expected=expected)
    for trial in sweep.trials:
        yield _trial_run(sweep, trial, expected=expected)
    yield from _group_runs(sweep, expected=expected)
    for stage in sweep.stages.values():
        if stage.kind == "train" and stage.own and stage.started is not None:
            yield _stage_run(sweep, stage, expected=expected)


def metric_name(text: str) -> str:
    """The text as a name that MLflow takes: some characters only, and no path that means another."""
    parts = [part for part in re.sub(r"[^\w.\- :/]", "_", text).split("/") if part.strip(".")]
    return "/".join(parts)[:250] or "_"


# --------------------------------------------------------------------------- levels


def _sweep_run(sweep: SweepFiles, *, expected: bool) -> RunShape:
    states = [stage.state for stage in sweep.stages.values()]
    done = [trial for trial in sweep.trials if trial.last.state == "done"]
    ends = [stage.ended or 0.0 for stage in sweep.stages.values()]
    names = ("sweep.yaml", "results.csv", "report.html")
    return RunShape(
        key=f"sweep:{sweep.folder.name}",
        level="sweep",
        name=sweep.name,
        state=_as_a_whole(states, expected=expected),
        status=_status(_as_a_whole(states, expected=expected), expected=expected),
        ledger=sweep.folder / "tracking.json",
        tags={"kdscale.digest": str(sweep.plan["digest"])[:12]},
        figures={"trials": float(len(sweep.trials)), "trials_done": float(len(done))},
        at=max([sweep.created, *ends]),
        started=sweep.created,
        ended=max([sweep.created, *ends]),
        note=notes.of_sweep(sweep),
        documents=[path for path in (sweep.folder / name for name in names) if path.exists()],
    )


def _trial_run(sweep: SweepFiles, trial: Trial, *, expected: bool) -> RunShape:
    state = _together([stage.state for stage in trial.stages])
    last = trial.last
    starts = [stage.started for stage in trial.stages if stage.started]
    done = last.state == "done"
    return RunShape(
        key=f"trial:{sweep.folder.name}:{json.dumps(trial.axes, sort_keys=True)}",
        level="trial",
        name=trial.label,
        state=state,
        status=_status(state, expected=expected),
        ledger=sweep.folder / "tracking.json",
        tags=dict(trial.axes)
        | {"kdscale.stage": last.name, "kdscale.digest": last.digest[:12], "kdscale.attempts": str(len(last.attempts))},
        params={name: _text(value) for name, value in {**trial.swept, **trial.axes}.items()},
        figures=trial_figures(sweep, trial) if done else {},
        at=max(float(stage.document.get("updated", 0.0)) for stage in trial.stages),
        # Stages of an earlier sweep may be reused: the trial itself begins with this one.
        started=max(sweep.created, min(starts, default=0.0)),
        ended=max(sweep.created, last.ended or 0.0),
        spool=last.folder / "metrics.jsonl",
        curves=TRIAL_CURVES,
        note=notes.of_trial(sweep, trial),
        config=[(stage.name, stage.folder / "stage.yaml") for stage in trial.stages],
    )


def _group_runs(sweep: SweepFiles, *, expected: bool) -> Iterator[RunShape]:
    """One run for the trials that differ by seed alone, as soon as one of them is done."""
    groups: dict[tuple[tuple[str, str], ...], list[Trial]] = {}
    for trial in sweep.trials:
        if "seed" in trial.axes:
            groups.setdefault(trial.group, []).append(trial)
    for axes, trials in groups.items():
        done = [trial for trial in trials if trial.last.state == "done"]
        if not done:
            continue
        state = _as_a_whole([stage.state for trial in trials for stage in trial.stages], expected=expected)
        at = max(float(trial.last.document.get("updated", 0.0)) for trial in done)
        yield RunShape(
            key=f"group:{sweep.folder.name}:{json.dumps(dict(axes), sort_keys=True)}",
            level="group",
            name=" · ".join([*(value for _, value in axes), "mean"]),
            state=state,
            status=_status(state, expected=expected),
            ledger=sweep.folder / "tracking.json",
            tags=dict(axes) | {"kdscale.stage": done[0].last.name},
            params=dict(axes),
            figures=group_figures(sweep, done),
            at=at,
            started=sweep.created,
            ended=max(sweep.created, at),
            note=notes.of_group(sweep, trials),
        )


def _stage_run(sweep: SweepFiles, stage: StageFiles, *, expected: bool) -> RunShape:
    return RunShape(
        key=f"stage:{stage.digest}",
        level="stage",
        name=_stage_name(sweep, stage),
        state=stage.state,
        status=_status(stage.state, expected=expected),
        ledger=stage.folder / "tracking.json",
        tags={
            "kdscale.stage": stage.name,
            "kdscale.digest": stage.digest[:12],
            "kdscale.attempts": str(len(stage.attempts)),
        },
        figures=final_figures(stage) if stage.state == "done" else {},
        at=float(stage.document.get("updated", 0.0)),
        started=stage.started,
        ended=stage.ended,
        spool=stage.folder / "metrics.jsonl",
        note=notes.of_stage(sweep, stage),
        config=[(stage.name, stage.folder / "stage.yaml")],
    )


# --------------------------------------------------------------------------- pieces


def _stage_name(sweep: SweepFiles, stage: StageFiles) -> str:
    """By the axis values that all its trials share; by its digest where every trial uses it."""
    users = sweep.users(stage)
    labels = [trial.label.split(" · ") for trial in users]
    shared = [part for i, part in enumerate(labels[0]) if all(i < len(other) and other[i] == part for other in labels)]
    if len(users) == len(sweep.trials) or not shared:
        return f"{stage.name} {stage.short}"
    return f"{stage.name} @ {' · '.join(shared)}"


def _together(states: Sequence[str]) -> str:
    """One word for several states: what needs a person first, then what runs."""
    return next((word for word in WORST_FIRST if word in states), "done")


def _as_a_whole(states: Sequence[str], *, expected: bool) -> str:
    """Of many trials: it runs as long as anything runs or will; only then is it as bad as its worst.

    What is queued has a job, and runs whether or not somebody follows it.
    """
    goes_on = RUNNING | {"queued"} | ({"waiting", "interrupted"} if expected else frozenset())
    return "running" if goes_on & set(states) else _together(states)


def _status(state: str, *, expected: bool) -> Status:
    """MLflow's word; what waits for somebody who has gone is ended."""
    return STATUS.get(state) or ("SCHEDULED" if expected else "KILLED")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 250 else text[:249] + "…"
