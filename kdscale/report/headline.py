"""The answer in one sentence, four figures beside it, and what there is to know of how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from kdscale.report.caches import cache_facts
from kdscale.report.cells import same_network_alone
from kdscale.report.failures import states
from kdscale.report.groups import BASELINE, Group, against, baseline_of, groups_of
from kdscale.report.records import StageRecord, SweepRecord
from kdscale.report.wording import count, duration, millis, p_value, percent, plural, points, times

__all__ = ["Headline", "Provenance", "Savings", "Tile", "headline", "provenance", "savings"]

NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Tile:
    """One large figure."""

    value: str
    unit: str
    what: str


@dataclass(frozen=True)
class Headline:
    """What came out."""

    title: str
    lead: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Savings:
    """What was not trained because it was there already, or because trials share it."""

    asked: int
    """(trial, stage) pairs."""
    trained: int
    reused: int
    shared: int
    flops_asked: float
    flops_paid: float
    seconds_saved: float | None

    @property
    def share(self) -> float:
        """Part of the training operations that were saved."""
        return 1 - self.flops_paid / self.flops_asked if self.flops_asked else 0.0

    def words(self) -> list[str]:
        """The same in sentences."""
        said = []
        if self.shared:
            said.append(f"{plural(self.shared, 'training')} fewer because trials share stages")
        if self.reused:
            said.append(f"{plural(self.reused, 'stage')} done before this launch")
        if self.seconds_saved:
            said.append(f"about {duration(self.seconds_saved)} of training time not spent again")
        return said


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from."""

    facts: list[tuple[str, str]]
    mixed: list[str]
    """Warnings: rows that were not made alike."""


def headline(sweep: SweepRecord, groups: Sequence[Group]) -> Headline:
    """Say what came out: the group that leads on validation, or the last stage of a single chain."""
    finished = [g for g in groups if g.mean("rating") is not None]
    if not finished:
        return Headline("Nothing is finished yet", f"{plural(len(sweep.stages), 'stage')}: {states(sweep)}.", [])
    rated = [g for g in finished if g.mean("val/rating") is not None]
    if len(groups) > 1 and rated:
        return _of_many(sweep, max(rated, key=lambda g: g.mean("val/rating") or 0.0), groups)
    if len(groups) > 1:
        title = f"{len(finished)} of {plural(len(groups), 'group')} finished"
        return Headline(title, "Nothing was held out for validation, so none of them is named best.", [])
    return _of_one(sweep, finished[0])


def savings(sweep: SweepRecord) -> Savings:
    """Compare what the trials ask for, each on its own, with what was trained."""
    wanted = [sweep.stages[d] for t in sweep.trials for d in t.stages.values()]
    unique = list({s.digest: s for s in wanted}.values())
    fresh = [s for s in unique if not s.reused]
    known = [s.results["wall_s"] for s in unique if s.results.get("wall_s")]
    spared = sum(s.results.get("wall_s") or 0.0 for s in wanted) - sum(s.results.get("wall_s") or 0.0 for s in fresh)
    return Savings(
        len(wanted), len(fresh), len(unique) - len(fresh), len(wanted) - len(unique),
        sum((s.cost.get("train_flops") or 0.0 for s in wanted), 0.0),
        sum((s.cost.get("train_flops") or 0.0 for s in fresh), 0.0),
        spared if known else None,
    )  # fmt: skip


def provenance(sweep: SweepRecord) -> Provenance:
    """Versions and machines over all attempts of all stages, and a warning where they differ."""
    attempts = [a for s in sweep.trained for a in s.attempts[-1:]]
    facts = [
        ("sweep", sweep.path.name),
        ("planned", _moment(sweep.plan.get("created"))),
        ("config", sweep.plan.get("config_path") or ""),
    ]
    for key in ("kdscale", "torch", "python", "device", "host", "engine", "loader", "precision", "world"):
        values = sorted({str(a[key]) for a in attempts if a.get(key) is not None})
        if values:
            facts.append(
                ({"world": "processes"}.get(key, key), ", ".join(values[:6]) + (" …" if len(values) > 6 else ""))
            )
    facts += cache_facts(sweep)
    tracking = sweep.plan.get("tracking") or {}
    facts.append(("tracking", f"{tracking.get('uri') or 'off'} · experiment {tracking.get('experiment') or '–'}"))
    mixed = [
        f"The stages were trained with different {what}: {', '.join(values)}. Small differences may come from that."
        for what, values in (
            (f"{k}s", sorted({str(a.get(k)) for a in attempts if a.get(k)})) for k in ("torch", "device")
        )
        if len(values) > 1
    ]
    resumed = [a for a in attempts if a.get("other_world")]
    if resumed:
        mixed.append(
            f"{plural(len(resumed), 'stage')} went on with another number of processes: not bitwise repeatable."
        )
    return Provenance([(k, v) for k, v in facts if v], mixed)


def _of_many(sweep: SweepRecord, best: Group, groups: Sequence[Group]) -> Headline:
    top1, gain = best.interval(), against(best, baseline_of(best, groups))
    seeds = f"over {plural(top1.n, best.repeats)}" if top1 and top1.n > 1 else "for one seed"
    lead = f"Chosen among {plural(len(groups), 'group')} by its mean validation accuracy; the figure is test, {seeds}."
    tiles = [Tile(percent(top1), "%", f"test {sweep.rated_by} of {best.label}")]
    if gain:
        sure = f", {p_value(gain.p)}" if gain.p is not None else ""
        tiles.append(Tile(points(gain.mean), "points", f"over {BASELINE}, the same network on labels alone{sure}"))
    tiles += _teacher_tiles(sweep, best)
    verb = "leads" if all(s.done for g in groups for s in g.stages) else "leads so far"
    return Headline(f"{best.label} {verb} with {percent(top1)}{NBSP}%", lead, tiles[:4])


def _of_one(sweep: SweepRecord, group: Group) -> Headline:
    stage, top1 = group.stages[0], group.interval()
    name = stage.name if len(sweep.trained) > 1 else stage.model
    rows = stage.results.get("test_rows")
    on = f"{rows:,} test images" if rows else "the test set"
    seeds = f", mean and 95 % interval over {plural(top1.n, 'seed')}" if top1 and top1.n > 1 else ""
    what = {"top-1": "Top-1"}.get(sweep.rated_by, sweep.rated_by)
    lead = f"{what} on {on} with the weights of the last epoch{seeds}; nothing was chosen on test."
    tiles = [Tile(percent(top1), "%", f"test {sweep.rated_by} of {name}")]
    alone = same_network_alone(group, _other_stages(sweep))
    if alone and (gain := against(group, alone)):
        sure = f", {p_value(gain.p)}" if gain.p is not None else ""
        words = f"over {alone.stages[0].name}, the same network without a teacher{sure}"
        tiles.append(Tile(points(gain.mean), "points", words))
    tiles += _teacher_tiles(sweep, group) or [Tile(millis(group.mean("latency_ms")), "", "for one image")]
    return Headline(
        f"The {name} reaches {percent(top1)}{NBSP}% with {count(stage.params).replace(' ', NBSP)} parameters",
        lead,
        tiles[:4],
    )


def _other_stages(sweep: SweepRecord) -> list[Group]:
    names = dict.fromkeys(n for t in sweep.trials for n in t.stages)
    return [groups_of(sweep, tuple(sweep.axes), stage=name)[0] for name in names]


def _teacher_tiles(sweep: SweepRecord, group: Group) -> list[Tile]:
    """How the student stands to the first network of its line, and to the teacher it agrees with."""
    stage = group.stages[0]
    first = _origin(sweep, stage)
    if first is stage:
        return []
    tiles = []
    if first.rating is not None and (mean := group.mean("rating")) is not None:
        tiles.append(
            Tile(
                points(mean - first.rating),
                "points",
                f"to {first.name}, which has {percent(first.rating)} %",
            )
        )
    if stage.params and first.params and not 0.95 < (ratio := first.params / stage.params) < 1.05:
        word = "smaller" if ratio > 1 else "larger"
        tiles.append(Tile(times(max(ratio, 1 / ratio)), word, f"than {first.name}{_speed(stage, first)}"))
    if (agreement := group.mean("agreement")) is not None:
        tiles.append(Tile(percent(agreement, 1), "%", "of test images on which it agrees with its teacher"))
    return tiles


def _origin(sweep: SweepRecord, stage: StageRecord) -> StageRecord:
    """Follow first teachers up to a network that had none."""
    seen = set()
    while (teachers := sweep.teachers(stage)) and stage.digest not in seen:
        seen.add(stage.digest)
        stage = teachers[0]
    return stage


def _speed(stage: StageRecord, first: StageRecord) -> str:
    ours, theirs = stage.results.get("latency_ms"), first.results.get("latency_ms")
    return f" and {times(theirs / ours)} faster" if ours and theirs and theirs > ours else ""


def _moment(created: Any) -> str:
    if isinstance(created, int | float):
        return datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return str(created or "")
