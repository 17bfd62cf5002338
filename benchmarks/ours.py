"""A rank of a real kdscale stage that takes turns with the bare loop.

    python -m benchmarks.ours RUNS DIGEST STEPS        with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set

It is what a worker does: the same imports, the claim, the loader, engine and teachers, checkpoints, metrics, the state
file. Only validation at the end of an epoch is left out, which the bare loop does not have.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.turns import Turns, forget_peak
from kdscale import ranks
from kdscale.api import Batch
from kdscale.jobs.warm import _import_everything
from kdscale.pipeline.artifacts import Root
from kdscale.train.build import build
from kdscale.train.device import make_deterministic
from kdscale.train.held import held
from kdscale.train.inspect import write_first_look
from kdscale.train.loop import BatchSource
from kdscale.train.records import attempt_record
from kdscale.train.stage import _StageRun
from kdscale.train.stop import Stop


@dataclass
class Source:
    """The stage's own loader, in turns."""

    loader: BatchSource
    turns: Turns

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.loader.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch."""
        return self.turns.between(self.loader.epoch(epoch, start))


def main(runs: str, digest: str, steps: str) -> None:
    """Take turns until standard input ends; the same calls as `run_stage` makes, in the same order."""
    _import_everything()  # as the workers' parent does
    torch.set_num_threads(1)
    turns = Turns(int(steps), forget_peak())
    ranks.join("gloo")
    root = Root(Path(runs))
    folder = root.stage(digest)
    assert folder is not None
    run = _StageRun(root, folder, Stop())
    with held(folder, attempt_record(run.definition, run.spec, run.device)) as run.claim:
        make_deterministic(run.spec, run.device)
        parts = build(run.definition, root, run.device)
        loop = run._begun(parts)
        loop.validate = None
        loop.loader = Source(loop.loader, turns)
        write_first_look(folder.path, parts, run.spec.train, write=run.main)
        run._train(parts, loop)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
