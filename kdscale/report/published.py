"""Paper against here: what a sweep's config expects of it, beside what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdscale.config.patches import label
from kdscale.config.published import PublishedFigure
from kdscale.report.grid import Cell, Column, Grid, Tone
from kdscale.report.records import StageRecord, SweepRecord, TrialRecord, axis_value
from kdscale.report.statistics import Interval, interval
from kdscale.report.wording import DASH, percent, plural, points

__all__ = ["published_grids", "verdict"]

_SAID = {"top1": "last", "top1_best_on_test": "best", "ensemble_top1": "ensemble"}
_BIASED = "best: of the epoch that is best on test, as its source has it; biased, for this comparison only."
_ROUNDING = 1e-9
"""Of differences: 0.7066 - 0.7026 is within 0.004."""
_COLUMNS = (
    Column("", number=False), Column("paper %"), Column("here %"), Column("within"), Column("reproduced", number=False),
)  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """What stands here for one published figure."""

    mean: Interval | None
    asked: int
    """Outcomes that there will be."""
    noun: str

    @property
    def count(self) -> str:
        """How many outcomes there are, e.g. `3 seeds`, `1 of 3 seeds`."""
        done = self.mean.n if self.mean else 0
        return plural(done, self.noun) if done == self.asked else f"{done} of {plural(self.asked, self.noun)}"


def published_grids(sweep: SweepRecord) -> list[Grid]:
    """The table of a sweep's published figures; none where its config has none."""
    published = [PublishedFigure.model_validate(one) for one in sweep.plan.get("expect") or []]
    if not published:
        return []
    sources = list(dict.fromkeys(one.source for one in published))
    rows = [_row(one, sweep, sources) for one in published]
    named = enumerate(sources, start=1)
    remarks = [f"[{n}] {source}" for n, source in named] if len(sources) > 1 else [f"Source: {sources[0]}"]
    if any(one.figure == "top1_best_on_test" for one in published):
        remarks.append(_BIASED)
    return [Grid("Paper against here, top-1 on test, mean ± 95 % interval", _COLUMNS, rows, remarks)]


def _row(one: PublishedFigure, sweep: SweepRecord, sources: Sequence[str]) -> list[Cell]:
    found = _difference(one, sweep) if one.over is not None else _figure(one, sweep)
    tag = f" [{sources.index(one.source) + 1}]" if len(sources) > 1 else ""
    paper = f"at least {points(one.value)}" if one.over is not None else percent(one.value)
    tolerance = DASH if one.within is None else f"{100 * one.within:.2f}"
    label = Cell(_label(one, sweep) + tag)
    if found.mean is None:
        return [label, Cell(paper), Cell("not run yet", tone="muted"), Cell(tolerance), Cell(DASH, tone="muted")]
    here = points(found.mean) if one.over else percent(found.mean)
    said = f"{found.count}, {_SAID[one.figure]}"
    return [
        label, Cell(paper), Cell(here, said, sort=found.mean.mean), Cell(tolerance),
        verdict(one, found.mean),
    ]  # fmt: skip


def verdict(one: PublishedFigure, here: Interval) -> Cell:
    """Whether it is reproduced, how far off it is, and whether that is more than seeds alone differ."""
    gap = here.mean - one.value
    good = gap >= -_ROUNDING if one.within is None else abs(gap) <= one.within + _ROUNDING
    far = "" if good else " too high" if gap > 0 else " too low"
    sure = "" if here.half is None else f", {'beyond' if abs(gap) > here.half else 'inside'} the interval"
    tone: Tone = "good" if good else "bad"
    return Cell("yes" if good else "no", f"{points(gap)}{far}{sure}", tone=tone)


def _label(one: PublishedFigure, sweep: SweepRecord) -> str:
    """What a figure is of, e.g. `kd · net1, net2 over ce`."""
    parts = [_worded(axis, value) for axis, value in one.where.items()]
    last = {sweep.final(trial) for trial in sweep.trials if one.holds_for(trial.axes)}
    if not parts or (one.stages and last != {*one.stages}):
        parts.append(", ".join(one.stages or sorted(last)))
    over = ", ".join(_worded(axis, value) for axis, value in (one.over or {}).items())
    return " · ".join(parts) + (f" over {over}" if over else "")


def _worded(axis: str, value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(axis_value(axis, label(each)) for each in values)


# --------------------------------------------------------------------------- what came out


def _figure(one: PublishedFigure, sweep: SweepRecord) -> _Found:
    trials = [trial for trial in sweep.trials if one.holds_for(trial.axes)]
    unique = {s.digest: s for trial in trials for s in _stages(one, sweep, trial)}
    values = [value for s in unique.values() if (value := _FIGURES[one.figure](s)) is not None]
    noun = "seed" if len(one.stages) < 2 and _differ_by_seed(trials) else "run"
    return _Found(interval(values), len(unique), noun)


def _difference(one: PublishedFigure, sweep: SweepRecord) -> _Found:
    """Of trials that differ in `over` alone; of two pairs with the same outcomes one counts."""
    theirs = {one.without_over(t.axes): t for t in sweep.trials if one.is_exceeded(t.axes)}
    ours = [t for t in sweep.trials if one.holds_for(t.axes) and one.without_over(t.axes) in theirs]
    pairs = {
        (own.digest, other.digest): (own, other)
        for trial in ours
        for own, other in zip(
            _stages(one, sweep, trial), _stages(one, sweep, theirs[one.without_over(trial.axes)]), strict=False
        )
    }
    known = [(own.results.get("top1"), other.results.get("top1")) for own, other in pairs.values()]
    values = [own - other for own, other in known if own is not None and other is not None]
    return _Found(interval(values), len(pairs), "pair")


def _stages(one: PublishedFigure, sweep: SweepRecord, trial: TrialRecord) -> Iterator[StageRecord]:
    for name in one.stages or [sweep.final(trial)]:
        if name in trial.stages:
            yield sweep.stage(trial, name)


def _differ_by_seed(trials: Sequence[TrialRecord]) -> bool:
    return len({tuple((a, v) for a, v in trial.axes.items() if a != "seed") for trial in trials}) <= 1


_FIGURES: Mapping[str, Callable[[StageRecord], float | None]] = {
    "top1": lambda stage: stage.results.get("top1"),
    "top1_best_on_test": lambda stage: stage.results.get("best_top1_on_test"),
    "ensemble_top1": lambda stage: stage.ensemble_top1,
}
