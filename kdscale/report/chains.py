"""Networks that teach one another in turn: how accuracy and size go along a chain, as in TAKD and GSKD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kdscale.report import plots
from kdscale.report.groups import Group
from kdscale.report.panels import Colours
from kdscale.report.records import StageRecord, SweepRecord, TrialRecord
from kdscale.report.statistics import interval
from kdscale.report.wording import count, percent

__all__ = ["chain_figures", "chain_of"]

FEWEST_LINKS = 3
MOST_CHAINS = 8


class _Link(NamedTuple):
    """One place of a chain, over the trials that are averaged."""

    name: str
    params: str
    point: plots.Point


def chain_figures(sweep: SweepRecord, groups: Sequence[Group], colours: Colours) -> list[str]:
    """One picture for all chains of networks with the same names; none where nobody teaches a teacher."""
    alike: dict[tuple[str, ...], list[list[_Link]]] = {}
    for group in groups:
        links = _links(sweep, group, colours)
        if len(links) >= FEWEST_LINKS:
            alike.setdefault(tuple(f"{link.name}\n{link.params}" for link in links), []).append(links)
    drawn: list[str] = []
    for ticks, chains in alike.items():
        points = [[link.point for link in links] for links in chains[:MOST_CHAINS]]
        drawn.append(plots.chain_figure(points, ticks, f"chain{len(drawn)}", sweep.rated_by))
    return drawn


def chain_of(sweep: SweepRecord, trial: TrialRecord) -> list[str]:
    """Names of the networks that taught one another, the longest way to a trial's last."""
    known: dict[str, list[str]] = {}

    def way(stage: StageRecord) -> list[str]:
        if stage.digest not in known:
            before = max((way(teacher) for teacher in sweep.teachers(stage)), key=len, default=[])
            known[stage.digest] = [*before, stage.digest]
        return known[stage.digest]

    names = {digest: name for name, digest in trial.stages.items()}
    return [names[digest] for digest in way(sweep.stage(trial, sweep.final(trial))) if digest in names]


def _links(sweep: SweepRecord, group: Group, colours: Colours) -> list[_Link]:
    trials = [member.trial for member in group.members]
    found = []
    for place, name in enumerate(chain_of(sweep, trials[0])):
        stages = {s.digest: s for trial in trials if name in trial.stages for s in [sweep.stage(trial, name)]}
        mean = interval([s.rating for s in stages.values() if s.rating is not None])
        if mean is None:
            continue
        params = next((s.params for s in stages.values() if s.params), None)
        said = f"{group.label}: {name}, {count(params)} parameters, {percent(mean)} %"
        point = plots.Point(group.label, float(place), mean.mean, mean.half, colours.of_group(group), title=said)
        found.append(_Link(name, count(params), point))
    return found
