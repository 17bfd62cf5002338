"""A fill stage: a teacher's answers to some blocks of a cache, over this stage's ranks, and beside other fillers.

Ranks do not talk while they fill: each takes blocks that nobody has. Killed at any point, the stage goes on with the
blocks that are not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdscale import ranks
from kdscale.cache.folder import CacheFolder
from kdscale.data.loader import TrainViews
from kdscale.pipeline.cache_need import CacheNeed, part_of
from kdscale.train.attempts import STATE_EVERY_S, Attempt, attempted
from kdscale.train.build import parents_of_stage, store_of_stage
from kdscale.train.caches import create_cache
from kdscale.train.filler import Filler
from kdscale.train.stop import Stop

__all__ = ["run_fill"]


def run_fill(root_path: Path, digest: str, stop: Stop | None = None) -> bool:
    """Fill; called by all of the stage's ranks. A stage that is done already is left as it is.

    Returns:
        Whether it is done; False when it was asked to stop.

    Raises:
        StageError: its teacher is not done or changed, or another live attempt holds the stage.
        CacheError: the cache cannot be written.
    """
    return attempted(_Fill, root_path, digest, stop)


@dataclass
class _Fill(Attempt):
    """One attempt at a fill stage."""

    def __post_init__(self) -> None:
        self.need = CacheNeed.of(self.definition["need"])

    def run(self, device: torch.device) -> bool:
        parents, consumed = parents_of_stage(self.definition, self.root)
        store = store_of_stage(self.definition, self.root, self.spec.data.stage_to, self.stop.move)
        cache = create_cache(self.root, self.need, consumed["teacher"], store, self.spec.data)
        self.blocks = part_of(self.need.views * cache.manifest.blocks_per_view, self.definition["part"])
        self._say(cache, "running")
        if self.claim is not None:
            self.folder.note_attempt(resumed_from=self.stop.step)
        views = TrainViews(store, self.spec.data)
        filler = Filler.of_stage(cache, self.definition, parents["teacher"], views, device, lambda: self.stop.asked)
        begun = time.perf_counter()
        whole = filler.fill(range(*self.blocks), self._progress(cache))
        spent = time.perf_counter() - begun
        computed = sum(ranks.gather_objects(filler.computed))
        if ranks.max_(torch.tensor(int(not whole))).item():
            self._say(cache, "interrupted", reason=self.stop.reason)
            return False
        results = {
            "cache": cache.manifest.digest, "path": str(cache.path), "blocks": computed,
            "images_per_s": computed * cache.manifest.block_rows / spent,
            "bytes": (self.blocks[1] - self.blocks[0]) * cache.manifest.block_rows * cache.manifest.record_bytes,
            "wall_s": time.time() - self.begun,
        }  # fmt: skip
        self._say(cache, "done", results=results, consumed=consumed)
        return True

    def _progress(self, cache: CacheFolder) -> Callable[[], None]:
        """What is done between blocks: say how far it is, keep the claim alive, notice a cancel."""

        def told() -> None:
            self.stop.move()
            if time.monotonic() - self._written < STATE_EVERY_S:
                return
            if self.folder.cancel_request() is not None:
                self.stop.ask("cancelled by its user")
            if self.claim is not None:
                self.claim.heartbeat()
            self._say(cache, "running")

        return told

    def _say(self, cache: CacheFolder, state: str, **changes: Any) -> None:
        """Write where the stage is, from one rank; its steps are blocks that are there, whoever made them."""
        self._written = time.monotonic()
        first, last = self.blocks
        self.stop.step = last - first - len(cache.missing(first, last))
        if self.claim is not None:
            self.folder.write_state(
                **{"state": state, "reason": "", "step": self.stop.step, "steps": last - first} | changes
            )
