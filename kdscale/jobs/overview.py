"""How far a sweep is, read from its files, and from the scheduler's answer, as cheaply as a live screen needs."""

from __future__ import annotations

import time
from collections import Counter

from kdscale.jobs.slurm.look import QueueLook
from kdscale.jobs.stage_view import StageView, Tail
from kdscale.pipeline.artifacts import Root, SweepFolder
from kdscale.pipeline.names import names_in, sweep_name

__all__ = ["ORDER", "STYLE", "StageView", "SweepView", "Tail"]

ORDER = (
    "failed", "paused", "lost", "cancelled", "blocked", "interrupted", "evaluating", "running", "starting", "queued",
    "waiting", "done",
)  # fmt: skip
"""States as shown, what needs a person first. `lost`: its process is dead and nobody has said so yet."""

STYLE = {
    "failed": "bold red", "paused": "yellow", "lost": "yellow", "cancelled": "yellow", "blocked": "yellow",
    "interrupted": "yellow", "evaluating": "cyan", "running": "cyan", "starting": "cyan", "done": "green",
}  # fmt: skip
"""Colour of a state wherever it is shown; never the only sign of it."""


class SweepView:
    """One sweep as it is now.

    Args:
        sweep: its folder.
        root: where its stages are looked for; by default the root that it lies in.
        asks_queue: whether the scheduler is asked, where stages are its jobs.

    Raises:
        ConfigError: it has no plan.
    """

    def __init__(self, sweep: SweepFolder, root: Root | None = None, *, asks_queue: bool = False) -> None:
        self.folder = sweep
        self.plan = sweep.plan()
        self.name = sweep_name(sweep)
        root = root or sweep.root
        folders = {folder.digest12: folder for folder in root.stages()}
        names = names_in(self.plan, self.name)
        self.stages = {
            digest: StageView(digest, names[digest], entry, folders.get(digest[:12]))
            for digest, entry in self.plan["stages"].items()
        }
        self.queue = QueueLook(root) if asks_queue else None
        self.refresh()

    def refresh(self) -> None:
        """Look again at every stage; the scheduler comes first, so that what it lacks is old news to the files."""
        if self.queue is not None:
            self.queue.refresh([stage.digest for stage in self.stages.values() if stage.status != "done"])
        for stage in self.stages.values():
            stage.refresh(self.queue)

    def counts(self) -> Counter[str]:
        """How many stages are in each state."""
        return Counter(stage.status for stage in self.stages.values())

    def in_state(self, *states: str) -> list[StageView]:
        """The stages in any of these states, parents first."""
        found = [stage for stage in self.stages.values() if stage.status in states]
        return sorted(found, key=lambda stage: stage.entry.get("depth", 0))

    def waits_for(self, stage: StageView) -> list[StageView]:
        """The stages that must be done before it can start."""
        parents = (self.stages.get(digest) for digest in stage.parents)
        return [parent for parent in parents if parent is not None and parent.status != "done"]

    @property
    def over(self) -> bool:
        """Whether nothing moves any more: nobody works, no launcher lives, and no job will run."""
        if self.folder.launcher() is not None:
            return False
        unknown = self.queue is not None and bool(self.queue.problem)
        return not any(s.live or s.job or (unknown and s.status == "queued") for s in self.stages.values())

    def hours(self) -> dict[str, float]:
        """Process hours that this sweep's own stages took, by kind: CPU-h, GPU-h."""
        hours: dict[str, float] = {}
        for stage in (s for s in self.stages.values() if not s.entry.get("reused")):
            for attempt in stage.state.get("attempts", []):
                unit = "CPU-h" if str(attempt.get("device", "cpu")).startswith("cpu") else "GPU-h"
                ended = attempt.get("ended") or (time.time() if stage.live else stage.state["updated"])
                spent = (ended - attempt["started"]) / 3600 * attempt.get("world", 1)
                hours[unit] = hours.get(unit, 0.0) + spent
        return {unit: round(spent, 3) for unit, spent in hours.items()}

    def seconds_left(self) -> float | None:
        """A guess at when all is done, from the FLOPs left and the pace at which they are computed now."""
        pace, left = 0.0, 0.0
        for stage in self.stages.values():
            flops = float(stage.entry.get("cost", {}).get("train_flops") or 0.0)
            share = 1 - stage.step / stage.steps if stage.steps else 1.0
            if stage.status not in ("done", "failed", "blocked", "cancelled", "paused"):
                left += flops * share
            own = stage.seconds_left()
            if own and share > 0:
                pace += flops * share / own
        return left / pace if pace else None
