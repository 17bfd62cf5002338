"""Where the replay of a step begins: the newest checkpoint before it that one process can read, else the beginning."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale import checkpoint
from kdscale.config.schema import StageSpec
from kdscale.pipeline.artifacts import StageFolder

__all__ = ["Start", "start_before"]


@dataclass(frozen=True)
class Start:
    """Where a replay begins, and with how many ranks."""

    step: int
    """Steps that are done."""
    world: int
    checkpoint: Path | None = None
    """None: the initial weights, which the seed decides."""
    weights_only: bool = False
    """Whether the optimizer's state is left out, since it is sharded and the step that is wanted comes next."""
    passed_over: frozenset[int] = frozenset()
    """Steps whose batch was consumed without training, by `on_nonfinite: rollback`."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "initial weights (step 0)" if self.checkpoint is None else f"checkpoint step {self.step:,}"


def start_before(folder: StageFolder, spec: StageSpec, step: int) -> Start:
    """Find where to begin to get to the state before `step`; reads only."""
    notes: list[str] = []
    passed_over = _passed_over(folder)
    world = _world_at(folder, step)
    for path in checkpoint.usable(folder.checkpoints, step):
        loop, sharding = json.loads((path / "loop.json").read_text()), _sharding(path)
        only = bool(sharding)
        if only and (loop["step"] != step or len(spec.passes or ()) > 1):
            notes.append(
                f"checkpoint step {loop['step']:,} is sharded (ZeRO {sharding['zero_stage']} over {sharding['world']} "
                f"processes): one process can begin only step {loop['step']} from it (--step {loop['step']})"
            )
            continue
        return Start(loop["step"], world, path, only, passed_over, notes)
    return Start(0, world, None, weights_only=False, passed_over=passed_over, notes=notes)


def _sharding(path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((path / "engine.json").read_text()).get("sharding", {})
    return found


def _passed_over(folder: StageFolder) -> frozenset[int]:
    """As the newest checkpoint has them, whole or not: it knows all that were passed over before it."""
    newest = checkpoint.newest(folder.checkpoints)
    if newest is None:
        return frozenset()
    loop: dict[str, Any] = json.loads((newest / "loop.json").read_text())
    return frozenset(loop["state"]["skip"])


def _world_at(folder: StageFolder, step: int) -> int:
    """How many processes the attempt had that ran a step; 1 where none did."""
    attempts = folder.state()["attempts"]
    before = [attempt for attempt in attempts if (attempt.get("resumed_from") or 0) <= step and "world" in attempt]
    return int(before[-1]["world"]) if before else 1
