"""What `--dry-run` and `--explain` print: stages with their costs, the matrix of trials, why things are reused."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["plan_screen", "totals"]


def plan_screen(plan: Plan) -> RenderableType:
    """The whole plan: headline, stages in order, trials, totals."""
    parts: list[RenderableType] = [Text(_headline(plan)), _stages(plan)]
    if len(plan.trials) > 1:
        parts.append(_matrix(plan))
    frozen = [(s, s.definition["frozen"]) for s in plan.stages.values() if s.definition.get("frozen")]
    parts += [Text(f"{s.name}: does not train (no term reaches it): {', '.join(names)}") for s, names in frozen]
    parts.append(Text(totals(plan)))
    return Group(*parts)


def _headline(plan: Plan) -> str:
    new, stages = len(plan.todo), len(plan.stages)
    trials = f"{len(plan.trials)} trial{'s' * (len(plan.trials) != 1)}"
    return f"{plan.folder_name}: {trials}, {stages} unique stages: {new} to run, {stages - new} reused"


def _stages(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "name", "takes from"):
        table.add_column(title, overflow="fold", no_wrap=title != "stage")
    for title in ("params", "MFLOPs", "steps", "TFLOPs", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for stage in plan.stages.values():
        table.add_row(*_stage_row(plan, stage))
    return table


def _stage_row(plan: Plan, stage: PlannedStage) -> list[str]:
    cost = stage.cost
    parents = ", ".join(
        f"{plan.stages[d].name}{'' if s == 'last' else '@' + s}" for d, s in stage.parents.values() if s != "store"
    )
    return [
        f"{stage.name}\n[dim]{stage.model}[/dim]", stage.digest[:6], parents,
        _count(cost.params), f"{cost.flops / 1e6:.1f}" if cost.flops else "",
        f"{cost.steps:,}" if cost.steps else "", f"{cost.train_flops / 1e12:.1f}" if cost.train_flops else "",
        f"{cost.bytes / 1e6:.1f}", "reused" if stage.reuse.done else _state(stage),
    ]  # fmt: skip


def _count(number: int) -> str:
    """1,234,567 as 1.23 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number or "")


def _state(stage: PlannedStage) -> str:
    return "new" if stage.reuse.state == "waiting" else stage.reuse.state


def _matrix(plan: Plan) -> Table:
    """Trials: the last two axes as rows and columns, others (seeds too) counted in the cells."""
    axes = [axis for axis in plan.axes if axis != "seed"] or list(plan.axes)
    row_axis, column_axis = (axes[0], axes[1]) if len(axes) > 1 else (axes[0], None)
    columns = plan.axes[column_axis] if column_axis else ["trials"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{row_axis} x {column_axis}" if column_axis else row_axis)
    for column in columns:
        table.add_column(str(column), justify="right")
    for row in plan.axes[row_axis]:
        cells = []
        for column in columns:
            chosen = [
                t for t in plan.trials
                if t.axes[row_axis] == row and (column_axis is None or t.axes[column_axis] == column)
            ]  # fmt: skip
            cells.append(_cell(plan, [t.stages for t in chosen]))
        table.add_row(str(row), *cells)
    return table


def _cell(plan: Plan, trials: list[dict[str, str]]) -> str:
    """Counts a trial as reused when each of its stages is."""
    if not trials:
        return "-"
    done = sum(all(plan.stages[d].reuse.done for d in stages.values()) for stages in trials)
    new = len(trials) - done
    return " ".join(part for part in (f"{new} new" if new else "", f"{done} reused" if done else "") if part)


def totals(plan: Plan) -> str:
    """One line: what is still to be computed and written."""
    todo = plan.todo
    flops = sum(stage.cost.train_flops for stage in todo)
    longest = _longest_chain(plan)
    megabytes = sum(stage.cost.bytes for stage in todo) / 1e6
    inodes = sum(stage.cost.inodes for stage in todo)
    return (
        f"to compute {flops / 1e12:,.1f} TFLOPs (longest chain {longest / 1e12:,.1f}) · "
        f"to write at most {megabytes:,.1f} MB in {inodes} files"
    )


def _longest_chain(plan: Plan) -> int:
    cost: dict[str, int] = {}
    for digest, stage in plan.stages.items():
        own = 0 if stage.reuse.done else stage.cost.train_flops
        cost[digest] = own + max([cost[d] for d, _ in stage.parents.values()], default=0)
    return max(cost.values(), default=0)
