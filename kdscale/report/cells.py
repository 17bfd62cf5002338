"""What stands in cells and below tables: accuracies with intervals, gains, progress, and what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence

from kdscale.report.failures import by_progress
from kdscale.report.grid import Cell, Tone
from kdscale.report.groups import BASELINE, Group, against, baseline_of
from kdscale.report.statistics import Interval, interval
from kdscale.report.wording import DASH, count, delta, percent, plural, points

__all__ = [
    "accuracy_cell",
    "best_on_test",
    "gain_cell",
    "leader",
    "matrix_cell",
    "remarks_on",
    "same_network_alone",
    "titled",
    "to_teacher",
]

LEVEL = 0.05
"""Below this p a difference is coloured."""
MOST_TEACHERS = 3


def accuracy_cell(group: Group, *, best: bool = False) -> Cell:
    """Mean test accuracy, or mIoU, with its interval, or what the group is doing; hovering shows the seeds."""
    found = group.interval()
    if found is None:
        return Cell(_progress(group), tone="muted")
    done = sum(s.done for s in group.stages)
    note = "" if done == len(group.stages) else f"{done} of {len(group.stages)}"
    seeds = ", ".join(percent(v) for v in group.values("rating").values())
    return Cell(percent(found), note, best, "muted" if note else "", f"{group.label}: {seeds}", found.mean)


def gain_cell(group: Group, groups: Sequence[Group]) -> Cell:
    """Difference to the baseline, coloured where it is more than chance."""
    found = against(group, baseline_of(group, groups))
    if found is None:
        return Cell()
    sure = found.p is not None and found.p < LEVEL
    tone: Tone = "muted" if not sure else "good" if found.mean > 0 else "bad"
    return Cell(delta(found), tone=tone, sort=found.mean)


def matrix_cell(group: Group, groups: Sequence[Group], *, best: bool) -> Cell:
    """Accuracy with the gain in small print; an unfinished group says how much of it there is instead."""
    cell, gain = accuracy_cell(group, best=best), gain_cell(group, groups)
    if cell.note or not gain.text:
        return cell
    return Cell(cell.text, gain.text, best, gain.tone, cell.title, cell.sort)


def leader(groups: Sequence[Group]) -> Group | None:
    """The group with the highest validation accuracy; None for a single one, or where nothing was validated."""
    rated = [(value, g) for g in groups if (value := g.mean("val/rating")) is not None and g.mean("rating") is not None]
    return max(rated, key=lambda pair: pair[0])[1] if len(rated) > 1 else None


def best_on_test(group: Group) -> Interval | None:
    """The papers' figure: the epoch chosen on test, biased upwards."""
    keys = ("best_top1_on_test", "best_miou_on_test")
    return interval([float(v) for s in group.stages for key in keys if (v := s.results.get(key)) is not None])


def same_network_alone(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group of the same network that no teacher taught."""
    if group.sweep.teachers(group.stages[0]):
        same = (g for g in groups if _network(g) == _network(group))
        return next((g for g in same if not g.sweep.teachers(g.stages[0])), None)
    return None


def _network(group: Group) -> tuple[object, ...]:
    """What two groups of one network share; its name alone leaves out what is long, such as widths."""
    return group.stages[0].model, group.stages[0].params, group.stages[0].flops


def to_teacher(group: Group) -> str:
    """Mean difference of each stage to its own first teacher."""
    pairs = [(s, teachers[0]) for s in group.stages if (teachers := group.sweep.teachers(s))]
    known = [s.rating - t.rating for s, t in pairs if s.rating is not None and t.rating is not None]
    return points(sum(known) / len(known)) if known else DASH


def titled(what: str, groups: Sequence[Group]) -> str:
    """A table's title, which says over how many seeds its figures are means."""
    most = max(groups, key=lambda g: len(g.stages), default=None)
    if most is None or len(most.stages) == 1:
        return what
    return f"{what}, mean ± 95 % interval over {plural(len(most.stages), most.repeats)}"


def remarks_on(groups: Sequence[Group], all_groups: Sequence[Group], bold: str = "") -> list[str]:
    """What a reader must know to trust the figures; `bold` says what stands out."""
    said = _taught_by(groups)
    if bold:
        said.append(f"Bold: {bold}; figures are test, of the last epoch.")
    if any(baseline_of(g, all_groups) for g in groups):
        how = "; p by a paired t-test, not corrected for many comparisons" if _repeated(groups) else ""
        said.append(f"Gains are points over {BASELINE}{how}.")
    if _repeated(groups) and any(_one_teacher(g) for g in groups):
        said.append("Repeats share their teacher: intervals do not hold the teacher's own spread.")
    return said


def _progress(group: Group) -> str:
    """What an unfinished group is doing, e.g. `running 55 %`."""
    stage = min(group.stages, key=lambda s: by_progress(s.status))
    steps = stage.state.get("steps") or 0
    share = f" {100 * stage.state.get('step', 0) // steps} %" if stage.status == "running" and steps else ""
    return stage.status + share


def _taught_by(groups: Sequence[Group]) -> list[str]:
    """The networks that taught the groups, where they are no rows themselves and few enough to be named."""
    rows = {s.digest for g in groups for s in g.stages}
    found = {t.digest: t for g in groups for s in g.stages for t in g.sweep.teachers(s)}
    known = [t for digest, t in found.items() if digest not in rows and t.rating is not None]
    said = "; ".join(f"{t.name} {percent(t.rating)} % ({t.model}, {count(t.params)})" for t in known)
    return [f"Taught by {said}."] if 0 < len(known) <= MOST_TEACHERS else []


def _repeated(groups: Sequence[Group]) -> bool:
    return any(len(g.stages) > 1 for g in groups)


def _one_teacher(group: Group) -> bool:
    taught = {s.digest for m in group.members for s in group.sweep.teachers(m.stage)}
    return len(group.stages) > 1 and len(taught) == 1
