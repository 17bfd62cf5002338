"""What `--dry-run` and `--explain` print: stages with their costs, the matrix of trials, why things are reused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdscale.jobs.planned_caches import PlannedCache, caches_of
from kdscale.jobs.stage_view import UNITS
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["plan_screen"]


def plan_screen(plan: Plan) -> RenderableType:
    """The whole plan: headline, stages in order, trials, totals."""
    caches = caches_of(plan)
    parts: list[RenderableType] = [Text(_headline(plan, caches)), _Stages(plan)]
    if len(plan.trials) > 1:
        parts.append(_matrix(plan))
    frozen = [(s, s.definition["frozen"]) for s in plan.stages.values() if s.definition.get("frozen")]
    parts += [Text(f"{s.name}: does not train (no term reaches it): {', '.join(names)}") for s, names in frozen]
    split = [f"{s.name}: {_sends(s.definition['wire'])}" for s in plan.stages.values() if "wire" in s.definition]
    parts += [Text(said) for said in dict.fromkeys(split)]
    parts += [Text(_totals(plan, caches)), Text(_passes(plan, caches))]
    if len([cache for cache in caches if cache.readers]) > 1:
        alike: dict[str, list[str]] = {}
        for cache in caches:
            alike.setdefault(f"({cache.need.record}), {cache.verdict()}" if cache.verdict() else "", []).append(
                cache.name
            )
        parts += [Text(f"{', '.join(names)} {words}") for words, names in alike.items() if words]
    parts += [Text(f"! {said}") for cache in caches if (said := cache.complaint())]
    return Group(*parts)


def _sends(wire: Mapping[str, int]) -> str:
    sent, given = wire["bytes"], wire["input_bytes"]
    return (
        f"sends {sent:,} bytes a sample, {100 * sent / given:.1f} % of its image's {given:,}, "
        f"after {wire['device_flops'] / 1e6:.1f} MFLOPs on the device"
    )


def _headline(plan: Plan, caches: Sequence[PlannedCache]) -> str:
    new, stages = len(plan.todo), len(plan.stages)
    trials = f"{len(plan.trials)} trial{'s' * (len(plan.trials) != 1)}"
    filled = [cache.holds for cache in caches if cache.waiting]
    alike = [f"{f'{many} × ' * (many > 1)}{holds}" for holds, many in Counter(filled).items()]
    said = f", with {len(filled)} cache fill{'s' * (len(filled) != 1)} ({'; '.join(alike)})" if filled else ""
    return f"{plan.folder_name}: {trials}, {stages} unique stages: {new} to run{said}, {stages - new} reused"


class _Stages:
    """One row a stage, what it is below its name; a narrow terminal shows fewer columns."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        rows = [_stage_row(self._plan, stage) for stage in self._plan.stages.values()]
        hidden = _NARROW if options.max_width < WIDE else ()
        titles = [title for title in rows[0] if title not in hidden]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in titles:
            wraps = title in ("stage", "takes from")
            table.add_column(
                title, no_wrap=not wraps, overflow="fold", justify="right" if title in _NUMBERS else "left",
                min_width=16 if wraps else None,
            )  # fmt: skip
        for row in rows:
            table.add_row(*(row[title] for title in titles))
        yield table


WIDE = 100
_NUMBERS = ("params", "MFLOPs", "steps", "forwards", "TFLOPs", "MB")
_NARROW = ("MFLOPs", "forwards", "MB")
"""Columns that a narrow terminal does without; the line of totals says what will be written."""


def _stage_row(plan: Plan, stage: PlannedStage) -> dict[str, Text]:
    cost, fills = stage.cost, stage.kind == "fill"
    unit = UNITS.get(stage.kind, "")
    is_ = stage.model.rpartition(": ")[2] if fills else stage.model  # whose records they are is what it takes from
    steps = f"{cost.steps:,}{unit}" if cost.steps else ""
    return {
        "stage": Text.assemble(stage.name, (f"\n{is_}", "dim")), "name": Text(stage.digest[:6]),
        "takes from": Text(", ".join(_sources(plan, stage))), "params": Text(_count(cost.params)),
        "MFLOPs": Text(f"{cost.flops / 1e6:.1f}" if cost.flops else ""), "steps": Text(steps),
        "forwards": Text(_count(cost.forwards)),
        "TFLOPs": Text(f"{cost.train_flops / 1e12:.1f}" if cost.train_flops else ""),
        "MB": Text(f"{cost.bytes / 1e6:.1f}"), "state": Text(_state(stage)),
    }  # fmt: skip


def _sources(plan: Plan, stage: PlannedStage) -> list[str]:
    """Whom a stage takes from; the parts of a cache as one, and by digest where several are called the same."""
    found: dict[str, None] = {}
    for role, (digest, selector) in stage.parents.items():
        source = plan.stages[digest]
        if role.startswith("cache:"):
            found[_cache_name(plan, source)] = None
        elif role.partition(":")[0] != "data":
            found[f"{source.name}@{selector}".replace("@last", "")] = None
    return list(found)


def _cache_name(plan: Plan, fill: PlannedStage) -> str:
    """One name for all stages that fill a cache; with a digest where the teacher has several caches."""
    teacher = fill.parents["teacher"]
    fills = [other for other in plan.stages.values() if other.kind == "fill" and other.parents["teacher"] == teacher]
    own = [other for other in fills if other.definition["need"] == fill.definition["need"]]
    name = f"{plan.stages[teacher[0]].name}-cache"
    return name if len(own) == len(fills) else f"{name} {own[0].digest[:6]}"


def _count(number: int) -> str:
    """1,234,567 as 1.23 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number or "")


def _state(stage: PlannedStage) -> str:
    if stage.reuse.done:
        return "reused" if stage.reuse.state == "done" else "not needed"
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


def _totals(plan: Plan, caches: Sequence[PlannedCache]) -> str:
    """In a line what is still to be computed and written."""
    todo = plan.todo
    flops = sum(stage.cost.train_flops for stage in todo) + sum(cache.on_use.train_flops for cache in caches)
    longest = _longest_chain(plan)
    megabytes = (sum(stage.cost.bytes for stage in todo) + sum(cache.on_use.bytes for cache in caches)) / 1e6
    inodes = sum(stage.cost.inodes for stage in todo) + sum(cache.on_use.inodes for cache in caches)
    return (
        f"to compute {flops / 1e12:,.1f} TFLOPs{_spared(plan, flops, caches)} · "
        f"longest chain {longest / 1e12:,.1f} · to write at most {megabytes:,.1f} MB in {inodes} files"
    )


def _passes(plan: Plan, caches: Sequence[PlannedCache]) -> str:
    """In a line how many images networks will answer and learn from, and how many students hear each cache."""
    todo, read = plan.todo, [cache for cache in caches if cache.readers]
    forwards = sum(stage.cost.forwards for stage in todo) + sum(cache.on_use.forwards for cache in caches)
    live = forwards + sum(stage.cost.saved_forwards for stage in todo) - sum(cache.to_fill for cache in read)
    parts = [
        f"forwards {_count(forwards) or 0}",
        f"backwards {_count(sum(s.cost.backwards for s in todo)) or 0} images",
    ]
    if read:
        parts[0] += f" ({_count(live)} without the cache{'s' * (len(read) > 1)})"
        least, most = (of(len(cache.readers) for cache in read) for of in (min, max))
        students = f"{least} to {most}" if least < most else str(most)
        parts.append(f"{'each' if len(read) > 1 else 'the'} cache answers {students} student{'s' * (most > 1)}")
    return " · ".join(parts)


def _spared(plan: Plan, flops: int, caches: Sequence[PlannedCache]) -> str:
    """What caches make of the whole: ` cached (118.0 without the cache; 8 views: it pays after 8 student-epochs)`."""
    read = [cache for cache in caches if cache.readers]
    if not read:
        return ""
    live = flops + sum(stage.cost.saved_flops for stage in plan.todo) - sum(cache.flops for cache in read)
    said = [f"{live / 1e12:,.1f} without the cache{'s' * (len(read) > 1)}"]
    said += [verdict] if len(read) == 1 and (verdict := read[0].verdict()) else []
    return f" cached ({'; '.join(said)})"


def _longest_chain(plan: Plan) -> int:
    cost: dict[str, int] = {}
    for digest, stage in plan.stages.items():
        own = 0 if stage.reuse.done else stage.cost.train_flops
        cost[digest] = own + max([cost[d] for d, _ in stage.parents.values()], default=0)
    return max(cost.values(), default=0)
