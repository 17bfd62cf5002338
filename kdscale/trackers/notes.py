"""What a run's page says in words: how it came about, where it lies, what to type next. Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdscale.trackers.files import StageFiles, SweepFiles, Trial

__all__ = ["of_group", "of_stage", "of_sweep", "of_trial"]

MOST_ROWS = 60
MOST_REASONS = 5


def of_sweep(sweep: SweepFiles) -> str:
    """Command, axes and stage table."""
    axes = "".join(f"- **{axis}**: {', '.join(values)}\n" for axis, values in sweep.plan["axes"].items())
    return "\n".join(
        [
            *_reasons(list(sweep.stages.values()))[:MOST_REASONS],
            f"{len(sweep.trials)} trials, {len(sweep.stages)} unique stages\n",
            axes,
            *_commands([sweep.plan["command"], f"python launch/report.py {sweep.name}"]),
            _table(sweep, list(sweep.stages.values())),
            f"Folder `{sweep.folder}`, config `{sweep.plan['config_path']}`",
        ]
    )


def of_trial(sweep: SweepFiles, trial: Trial) -> str:
    """Its stages, and the names by which the terminal knows them."""
    name = _name(sweep, trial.last, trial)
    return "\n".join(
        [
            *_reasons(trial.stages),
            f"Trial of **{sweep.name}**: the curves and figures are those of its stage `{trial.last.name}`.\n",
            _table(sweep, trial.stages),
            *_commands([sweep.plan["command"], f'python launch/logs.py "{name}"', f'python launch/export.py "{name}"']),
            f"Folder `{trial.last.folder}`",
        ]
    )


def of_group(sweep: SweepFiles, trials: Sequence[Trial]) -> str:
    """Which trials it averages."""
    rows = [f"- {trial.label}: {trial.last.state}" for trial in trials]
    return "\n".join(
        [
            f"Mean over seeds, of **{sweep.name}**; `_ci95` is the half-width of the 95 % t-interval over n seeds.\n",
            *rows,
        ]
    )


def of_stage(sweep: SweepFiles, stage: StageFiles) -> str:
    """What it is, what it takes from, who uses it, and every attempt."""
    parents = [sweep.stages[p["digest"]] for p in stage.parents if p["digest"] in sweep.stages]
    takes = ", ".join(f"`{p.name} {p.short}`" for p in parents)
    lines = [
        *_reasons([stage]),
        f"**{stage.model}**, digest `{stage.digest[:12]}`\n",
        f"- takes from: {takes or 'nothing'}",
        f"- used by: {_some(trial.label for trial in sweep.users(stage))}",
        f"- folder: `{stage.folder}`, logs below it",
    ]
    attempts = [
        f"| {a.get('attempt', '')} | {a.get('host', '')} | {a.get('world', '')} x {a.get('device', '')} "
        f"| {a.get('resumed_from', 0)} | {a.get('outcome') or ''} |"
        for a in stage.attempts[-MOST_ROWS:]
    ]
    table = ["", "| attempt | host | ranks | from step | outcome |", "|---|---|---|---|---|", *attempts]
    return "\n".join([*lines, *table, "", *_commands([f'python launch/logs.py "{stage.digest[:12]}"'])])


def _reasons(stages: Sequence[StageFiles]) -> list[str]:
    """Why a stage is not what it should be, first of all: the page folds a note after three lines."""
    told = [stage for stage in stages if stage.document.get("reason")]
    return [f"**{stage.name} {stage.state}**: {stage.document['reason']}\n" for stage in told]


def _table(sweep: SweepFiles, stages: Sequence[StageFiles]) -> str:
    rows = []
    for stage in stages[:MOST_ROWS]:
        parents = [sweep.stages[p["digest"]].name for p in stage.parents if p["digest"] in sweep.stages]
        top1 = stage.results.get("top1")
        figure = "" if top1 is None else f"{top1:.4f}"
        rows.append(
            f"| {stage.name} | `{stage.short}` | {stage.model} | {', '.join(parents)} | {stage.state} | {figure} |"
        )
    if len(stages) > MOST_ROWS:
        rows.append(f"| and {len(stages) - MOST_ROWS} more | | | | | |")
    head = ["| stage | digest | model | takes from | state | top-1 |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _name(sweep: SweepFiles, stage: StageFiles, trial: Trial) -> str:
    """The stage's name in the grammar of the terminal."""
    axes = f"[{','.join(trial.label.split(' · '))}]" if trial.axes else ""
    return f"{sweep.name}:{stage.name}{axes}"


def _commands(lines: Sequence[str]) -> list[str]:
    return ["```", *lines, "```", ""]


def _some(words: Iterable[str], most: int = 12) -> str:
    listed = list(words)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
