"""States of a sweep's stages in words, and what ended badly by its cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdscale.report.records import ENDED_BADLY, PRUNED, StageRecord, SweepRecord

__all__ = ["Failure", "by_progress", "failures", "stage_names", "states"]

MOST_NAMES = 3
_BY_PROGRESS = (*ENDED_BADLY, "interrupted", "running", "evaluating", "queued", "waiting", "done")


def states(sweep: SweepRecord) -> str:
    """How many unique stages are in which state, e.g. `6 done, 1 running`."""
    found = sorted((s.status for s in sweep.stages.values() if not s.pruned), key=by_progress, reverse=True)
    pruned = sum(s.pruned for s in sweep.stages.values())
    said = [f"{found.count(state)} {state}" for state in dict.fromkeys(found)]
    return ", ".join([*said, *([f"{pruned} cancelled ({PRUNED})"] if pruned else [])])


@dataclass(frozen=True)
class Failure:
    """Stages that ended badly for the same reason."""

    status: str
    cause: str
    names: list[str]
    """Pasteable."""

    @property
    def whom(self) -> str:
        """The stages, the first few by name."""
        more = len(self.names) - MOST_NAMES
        return ", ".join(self.names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def failures(sweep: SweepRecord) -> list[Failure]:
    """What ended badly, by cause: what failed by itself before what was only blocked by it."""
    bad = [s for s in sweep.stages.values() if s.status in ENDED_BADLY and not s.pruned]
    found: dict[tuple[str, str], list[str]] = {}
    for stage in sorted(bad, key=lambda s: (ENDED_BADLY.index(s.status), s.depth)):
        reason = stage.state.get("reason") or "no reason was recorded"
        found.setdefault((stage.status, reason), []).append(sweep.name_of(stage))
    return [Failure(status, cause, names) for (status, cause), names in found.items()]


def by_progress(state: str) -> int:
    """Place of a state in the order from what needs a person to what is done."""
    return _BY_PROGRESS.index(state) if state in _BY_PROGRESS else len(_BY_PROGRESS)


def stage_names(stages: Sequence[StageRecord]) -> list[str]:
    """Stage names in the order of their depth, each once."""
    return list(dict.fromkeys(s.name for s in sorted(stages, key=lambda s: s.depth)))
